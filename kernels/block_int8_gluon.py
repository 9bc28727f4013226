"""The block-int8 GEMM of `block_int8` for Hopper, in Gluon: warp-specialised and persistent (`gemm_gluon`).

A warpgroup multiplies one K block of 128 and adds it to its fp32 sums under its scales while the others multiply. The
plain kernel's 64×128 tiles move 24 KiB for a third of the operations that 40 KiB serve here, and are bound by shared
memory. Same bits, 910–1,090 TOPS on an H200 (docs/facts.md).

What a warpgroup does between two of its products keeps the tensor cores waiting, so little stands there: scales are
loaded a K block ahead and multiplied behind the product's start, and stages are given back there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .block_int8 import AMAX_FLOOR, BLOCK, BlockInt8, GatedResidual, QuantizedActivations
from .gemm_finish_gluon import fetch_residual, finish_tile
from .gemm_gluon import (
    COPY_REGISTERS,
    GROUP_ROWS,
    GROUPS,
    L2_ROWS,
    MULTIPLY_REGISTERS,
    STAGES,
    STAGES_CODES,
    copy_tiles,
    descriptor,
    first_tile,
    next_tile,
    place,
    programs,
    residual_block,
    rooms,
)
from .hopper_gluon import barrier, next_stage


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
    band, index, band_step, index_step, band_tiles = first_tile(n_blocks, L2_ROWS)
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
        next_m, next_n = place(band, index, m_blocks, n_blocks, L2_ROWS)
        band, index = next_tile(band, index, band_step, index_step, band_tiles)
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
        x_block = residual_block(k_blocks)
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
    a_tiles, w_tiles, y_tiles, ready, free, x_arrived = rooms(a_desc, w_desc, y_desc, RESIDUAL, GROUPS, STAGES)
    m_blocks = gl.cdiv(M, GROUPS * a_desc.block_shape[0])
    n_blocks = gl.cdiv(N, w_desc.block_shape[0])
    k_blocks = K // a_desc.block_shape[1]
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
            (copy_tiles, (
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
    with torch.cuda.device_of(y):
        _linear_kernel[(programs(m, n, y.device),)](
            descriptor(a.codes, GROUP_ROWS),
            descriptor(w.codes.contiguous(), BLOCK),
            descriptor(y, GROUP_ROWS),
            None if residual is None else descriptor(residual.x.reshape(m, n), GROUP_ROWS),
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
