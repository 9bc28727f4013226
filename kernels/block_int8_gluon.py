"""The block-int8 GEMM of `block_int8` for Hopper, in Gluon: warp-specialised and persistent.

A program owns a multiprocessor and walks through 192×128 tiles of y. One warp copies tiles of codes to shared memory
by TMA; three warpgroups of 64 rows each multiply one K block of 128 (wgmma s8 → s32), add it to their fp32 sums under
its scales while the others multiply, and finish the tile (`block_int8_finish_gluon`) while the first K block of the
next one multiplies. A K block moves 40 KiB for 2·192·128·128 operations; the plain kernel's 64×128 tiles move 24 KiB
for a third of them and are bound by shared memory. Same bits, 910–1,090 TOPS on an H200 (docs/facts.md).

What a warpgroup does between two of its products keeps the tensor cores waiting, so little stands there: scales are
loaded a K block ahead and multiplied behind the product's start, and stages are given back there.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .block_int8 import AMAX_FLOOR, BLOCK, BlockInt8, GatedResidual, QuantizedActivations
from .block_int8_finish_gluon import fetch_residual, finish_tile
from .dispatch import multiprocessors
from .grid import cdiv
from .hopper_gluon import Descriptor, barrier, barriers, load_tile, next_stage

GROUPS = 3  # warpgroups that multiply, 64 rows each
GROUP_ROWS = 64
# 40 KiB a stage; the finished tile takes 48 KiB in 16 bit and 24 KiB in int8 of the 227 KiB there are.
STAGES, STAGES_CODES = 4, 5
# The entry count is 128 registers a thread (16 warps); the copying warp hands its share to the multiplying ones.
MULTIPLY_REGISTERS, COPY_REGISTERS = 160, 24
L2_ROWS = 8  # row blocks walked together, so that their weight tiles stay in the L2 cache

_X_BLOCK = gl.constexpr(5)  # the K block during which a tile's residual is fetched, the last one if there are fewer


@gluon.jit
def _place(band, index, m_blocks, n_blocks, L2_ROWS: gl.constexpr):
    """Row and column block of a tile, given as its band of L2_ROWS row blocks and its index there: columns last."""
    rows = gl.minimum(m_blocks - band * L2_ROWS, L2_ROWS)
    if rows == L2_ROWS:
        n_block = index // L2_ROWS
    else:
        rows = gl.maximum(rows, 1)  # behind the last tile there may be none
        n_block = gl.minimum(index // rows, n_blocks - 1)
    m_block = band * L2_ROWS + index - n_block * rows
    return m_block, n_block


@gluon.jit
def _next_tile(band, index, band_step, index_step, band_tiles):
    """The tile that this program works on next, found without a division."""
    band += band_step
    index += index_step
    if index >= band_tiles:
        index -= band_tiles
        band += 1
    return band, index


@gluon.jit
def _copy_tiles(
    a_desc, w_desc, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    rows: gl.constexpr = a_desc.block_shape[0]
    columns: gl.constexpr = w_desc.block_shape[0]
    depth: gl.constexpr = a_desc.block_shape[1]
    stage = 0
    phase = 1  # a fresh barrier's previous phase: every stage is free at first
    band_tiles = L2_ROWS * n_blocks
    band = gl.program_id(0) // band_tiles
    index = gl.program_id(0) % band_tiles
    band_step = gl.num_programs(0) // band_tiles
    index_step = gl.num_programs(0) % band_tiles
    for _ in range(gl.program_id(0), m_blocks * n_blocks, gl.num_programs(0)):
        m_block, n_block = _place(band, index, m_blocks, n_blocks, L2_ROWS)
        for k_block in range(k_blocks):
            mbarrier.wait(free.index(stage), phase)
            arrived = ready.index(stage)
            mbarrier.expect(arrived, (GROUPS * rows + columns) * depth)
            load_tile(w_desc, [n_block * columns, k_block * depth], arrived, w_tiles.index(stage))
            for group in gl.static_range(GROUPS):
                first = (m_block * GROUPS + group) * rows
                load_tile(a_desc, [first, k_block * depth], arrived, a_tiles.index(stage * GROUPS + group))
            stage, phase = next_stage(stage, phase, STAGES)
        band, index = _next_tile(band, index, band_step, index_step, band_tiles)


@gluon.jit
def _multiply_tiles(
    y_tile, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, parts_ptr, M, N,
    a_scale_stride, parts_stride, amax_min, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
    group: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
    QUANTIZE: gl.constexpr, SQUARES: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    rows_a_group: gl.constexpr = y_desc.block_shape[0]
    width: gl.constexpr = y_desc.block_shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 32])
    vector: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])  # a column a thread
    unused = gl.zeros([rows_a_group, width], gl.int32, layout)
    total = gl.zeros([rows_a_group, width], gl.float32, layout)
    bias = gl.zeros([width], bias_ptr.dtype.element_ty, vector)
    gate = gl.zeros([width], gl.float32, vector)
    stage = 0
    phase = 0
    read_stage = 0  # multiplied, not given back yet
    x_phase = 1
    m_block = 0
    n_block = 0
    tiles = m_blocks * n_blocks
    band_tiles = L2_ROWS * n_blocks
    band = gl.program_id(0) // band_tiles
    index = gl.program_id(0) % band_tiles
    band_step = gl.num_programs(0) // band_tiles
    index_step = gl.num_programs(0) % band_tiles
    # A tile is finished while the first K block of the next one multiplies. The last round multiplies whatever lies
    # there, so that no branch stands between the products.
    for tile in range(gl.program_id(0), tiles + gl.num_programs(0), gl.num_programs(0)):
        more = tile < tiles
        mbarrier.wait(ready.index(stage), phase, pred=more)
        product = warpgroup_mma(
            a_tiles.index(stage * GROUPS + group),
            w_tiles.index(stage).permute((1, 0)),
            unused,
            use_acc=False,
            is_async=True,
        )
        next_m, next_n = _place(band, index, m_blocks, n_blocks, L2_ROWS)
        band, index = _next_tile(band, index, band_step, index_step, band_tiles)
        next_m = next_m * GROUPS + group
        rows = next_m * rows_a_group + gl.arange(0, rows_a_group, gl.SliceLayout(1, layout))
        # Rows past the end are computed with the last row's scales and never written.
        a_scales = a_scale_ptr + gl.minimum(rows, M - 1)
        w_scales = w_scale_ptr + next_n * k_blocks
        a_scale = gl.load(a_scales)
        w_scale = gl.load(w_scales)
        if tile != gl.program_id(0):
            finish_tile(
                total, y_tile, y_desc, x_arrived, x_phase, bias, gate, parts_ptr, m_block, n_block, M, parts_stride,
                amax_min, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, SQUARES,
            )  # fmt: skip
        m_block = next_m
        n_block = next_n
        columns = n_block * width + gl.arange(0, width, vector)
        if HAS_BIAS:
            bias = gl.load(bias_ptr + columns, mask=columns < N, other=0.0)
        if GATE:
            gate = gl.load(gate_ptr + columns, mask=columns < N, other=0.0)
        product = warpgroup_mma_wait(0, deps=[product])
        total = product.to(gl.float32) * (a_scale * w_scale)[:, None]
        read_stage = stage
        stage, phase = next_stage(stage, phase, STAGES)
        a_scales += a_scale_stride
        w_scales += 1
        a_scale = gl.load(a_scales, mask=k_blocks > 1)
        w_scale = gl.load(w_scales, mask=k_blocks > 1)
        x_block = gl.minimum(k_blocks, _X_BLOCK) - 1
        if RESIDUAL:
            x_phase ^= 1
            if (x_block == 0) & more:
                fetch_residual(x_desc, x_arrived, y_tile, m_block, n_block)
        barrier()
        for k_block in range(1, gl.where(more, k_blocks, 1)):
            if RESIDUAL:  # noqa: SIM102 - decided when it is compiled
                if k_block == x_block:
                    fetch_residual(x_desc, x_arrived, y_tile, m_block, n_block)
            mbarrier.wait(ready.index(stage), phase)
            product = warpgroup_mma(
                a_tiles.index(stage * GROUPS + group),
                w_tiles.index(stage).permute((1, 0)),
                unused,
                use_acc=False,
                is_async=True,
            )
            # The last stage is given back once all four warps have read it. The second barrier replaces one that
            # Triton would put before the next wait, where no product is under way.
            barrier()
            mbarrier.arrive(free.index(read_stage))
            barrier()
            read_stage += 1
            if read_stage == STAGES:
                read_stage = 0
            scale = a_scale * w_scale
            a_scales += a_scale_stride
            w_scales += 1
            a_scale = gl.load(a_scales, mask=k_block + 1 < k_blocks)
            w_scale = gl.load(w_scales, mask=k_block + 1 < k_blocks)
            stage, phase = next_stage(stage, phase, STAGES)
            product = warpgroup_mma_wait(0, deps=[product])
            total += product.to(gl.float32) * scale[:, None]
        barrier()
        mbarrier.arrive(free.index(read_stage), pred=more)
    tma.store_wait(0)


# A sample's scales begin wherever the sample before it ends.
@gluon.jit(do_not_specialize=["M", "a_scale_stride", "parts_stride"], do_not_specialize_on_alignment=["a_scale_ptr"])
def _linear_kernel(
    a_desc,  # int8 [M, K], blocks of 64×128
    w_desc,  # int8 [N, K], blocks of 128×128
    y_desc,  # [M, N], blocks of 64×128; int8 codes where QUANTIZE
    x_desc,  # [M, N] as y where RESIDUAL, else None
    a_scale_ptr,  # fp32 [K/128, M]
    w_scale_ptr,  # fp32 [N/128, K/128]
    bias_ptr,  # [N]
    gate_ptr,  # fp32 [N]
    parts_ptr,  # fp32 [N/128, M]: scales where QUANTIZE, Σ y² where SQUARES
    M,
    N,
    K,
    a_scale_stride,
    parts_stride,
    amax_min,
    HAS_BIAS: gl.constexpr,
    GELU: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATE: gl.constexpr,
    QUANTIZE: gl.constexpr,
    SQUARES: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    L2_ROWS: gl.constexpr,
    MULTIPLY_REGISTERS: gl.constexpr,
    COPY_REGISTERS: gl.constexpr,
):
    rows: gl.constexpr = a_desc.block_shape[0]
    columns: gl.constexpr = w_desc.block_shape[0]
    depth: gl.constexpr = a_desc.block_shape[1]
    a_tiles = gl.allocate_shared_memory(gl.int8, [STAGES * GROUPS, rows, depth], a_desc.layout)
    w_tiles = gl.allocate_shared_memory(gl.int8, [STAGES, columns, depth], w_desc.layout)
    y_tiles = gl.allocate_shared_memory(y_desc.dtype, [GROUPS, rows, columns], y_desc.layout)
    ready, free = barriers(STAGES, GROUPS)
    # Without a residual nobody asks: an idle barrier's memory would be given away, and it may come back over that.
    x_arrived = ready
    if RESIDUAL:
        x_arrived = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
        for group in gl.static_range(GROUPS):
            mbarrier.init(x_arrived.index(group), count=1)
    fence_async_shared()  # copies must find the barriers as they begin

    m_blocks = gl.cdiv(M, GROUPS * rows)
    n_blocks = gl.cdiv(N, columns)
    k_blocks = K // depth
    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_multiply_tiles, (
                y_tiles.index(0), x_arrived.index(0), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, parts_ptr, M, N, a_scale_stride, parts_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                0, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, SQUARES, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(1), x_arrived.index(1), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, parts_ptr, M, N, a_scale_stride, parts_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                1, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, SQUARES, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(2), x_arrived.index(2), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, parts_ptr, M, N, a_scale_stride, parts_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                2, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, SQUARES, GROUPS, STAGES, L2_ROWS,
            )),
            (_copy_tiles, (
                a_desc, w_desc, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks, GROUPS, STAGES, L2_ROWS,
            )),
        ],
        [4, 4, 1],
        [MULTIPLY_REGISTERS, MULTIPLY_REGISTERS, COPY_REGISTERS],
    )
    # fmt: on


def linear_gluon(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    *,
    gelu: bool,
    y: Tensor,
    parts: Tensor | None = None,
    residual: GatedResidual | None = None,
) -> None:
    """Launch the GEMM into `y` [M, N]: 16-bit, or int8 codes.

    `parts`, fp32 [N/128, M], takes the scales of the codes, or Σ y² of each row and 128 columns where y is 16-bit.

    Samples with gates of their own are launched one by one: a tile would have to look up each row's gate.
    """
    if residual is None or residual.gate is None or residual.gate.shape[0] == 1:
        _launch(a, w, bias, gelu, y, parts, residual)
        return
    batch = residual.gate.shape[0]
    length = y.shape[0] // batch
    for sample in range(batch):
        rows = slice(sample * length, (sample + 1) * length)
        own = QuantizedActivations(a.codes[rows], a.scale[:, rows])
        gated = GatedResidual(residual.x[sample : sample + 1], residual.gate[sample : sample + 1])
        _launch(own, w, bias, gelu, y[rows], None, gated)


def _launch(
    a: QuantizedActivations,
    w: BlockInt8,
    bias: Tensor | None,
    gelu: bool,
    y: Tensor,
    parts: Tensor | None,
    residual: GatedResidual | None,
) -> None:
    (m, k), n = a.codes.shape, w.shape[0]
    gate = None if residual is None or residual.gate is None else residual.gate.to(torch.float32).contiguous()
    quantize = y.dtype == torch.int8
    w_scale = w.scale.contiguous()
    tiles = cdiv(m, GROUPS * GROUP_ROWS) * cdiv(n, BLOCK)
    with torch.cuda.device_of(y):
        _linear_kernel[(min(tiles, multiprocessors(y.device)),)](
            _descriptor(a.codes, GROUP_ROWS),
            _descriptor(w.codes.contiguous(), BLOCK),
            _descriptor(y, GROUP_ROWS),
            None if residual is None else _descriptor(residual.x.reshape(m, n), GROUP_ROWS),
            a.scale,
            w_scale,
            y if bias is None else bias,
            w_scale if gate is None else gate,
            w_scale if parts is None else parts,
            m,
            n,
            k,
            a.scale.stride(0),
            0 if parts is None else parts.stride(0),
            AMAX_FLOOR,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            GATE=gate is not None,
            QUANTIZE=quantize,
            SQUARES=parts is not None and not quantize,
            GROUPS=GROUPS,
            STAGES=STAGES_CODES if quantize else STAGES,
            L2_ROWS=L2_ROWS,
            MULTIPLY_REGISTERS=MULTIPLY_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )


@functools.cache
def _layout(dtype: torch.dtype, rows: int) -> gl.NVMMASharedLayout:
    element = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, BLOCK], element)


def _descriptor(x: Tensor, rows: int) -> Descriptor:
    return Descriptor(x, x.shape, x.stride(), [rows, BLOCK], _layout(x.dtype, rows))
