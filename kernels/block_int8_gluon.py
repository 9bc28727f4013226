"""The block-int8 GEMM of `block_int8` for Hopper, in Gluon: warp-specialised and persistent.

A program owns a multiprocessor and walks through 192×128 tiles of y. One warp copies tiles of codes to shared memory
by TMA; three warpgroups of 64 rows each multiply one K block of 128 (wgmma s8 → s32), add it to their fp32 sums under
its scales while the others multiply, and finish the tile: bias, GELU, gated residual or int8 codes, written back by
TMA. A K block moves 40 KiB for 2·192·128·128 operations; the plain kernel's 64×128 tiles move 24 KiB for a third of
them and are bound by shared memory. Same bits, 930–1,080 TOPS instead of 800–860 on an H200 (docs/facts.md).
"""

from __future__ import annotations

import functools

import torch
import triton
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .block_int8 import AMAX_FLOOR, BLOCK, BlockInt8, GatedResidual, QuantizedActivations
from .dispatch import multiprocessors
from .hopper_gluon import load_tile, store_tile

GROUPS = 3  # warpgroups that multiply, 64 rows each
GROUP_ROWS = 64
# 40 KiB a stage; the finished tile takes 48 KiB in 16 bit and 24 KiB in int8 of the 227 KiB there are.
STAGES, STAGES_CODES = 4, 5
# The entry count is 128 registers a thread (16 warps); the copying warp hands its share to the multiplying ones.
MULTIPLY_REGISTERS, COPY_REGISTERS = 160, 24
L2_ROWS = 8  # row blocks walked together, so that their weight tiles stay in the L2 cache

# 1.5·2^23: adding it leaves an integer of magnitude < 2^22 in the low bits of an fp32, rounded to nearest even.
_ROUND_MAGIC = gl.constexpr(12582912.0)
_CODE_MAX = gl.constexpr(12582912.0 + 127.0)


@gluon.jit
def _tile_of(tile, m_blocks, n_blocks, L2_ROWS: gl.constexpr):
    """Columns first within groups of row blocks."""
    per_group = L2_ROWS * n_blocks
    first_m = tile // per_group * L2_ROWS
    group_m = gl.minimum(m_blocks - first_m, L2_ROWS)
    return first_m + (tile % per_group) % group_m, (tile % per_group) // group_m


@gluon.jit
def _next_stage(stage, phase, STAGES: gl.constexpr):
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


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
    for tile in range(gl.program_id(0), m_blocks * n_blocks, gl.num_programs(0)):
        m_block, n_block = _tile_of(tile, m_blocks, n_blocks, L2_ROWS)
        for k_block in range(k_blocks):
            mbarrier.wait(free.index(stage), phase)
            arrived = ready.index(stage)
            mbarrier.expect(arrived, (GROUPS * rows + columns) * depth)
            load_tile(w_desc, [n_block * columns, k_block * depth], arrived, w_tiles.index(stage))
            for group in gl.static_range(GROUPS):
                first = (m_block * GROUPS + group) * rows
                load_tile(a_desc, [first, k_block * depth], arrived, a_tiles.index(stage * GROUPS + group))
            stage, phase = _next_stage(stage, phase, STAGES)


@gluon.jit
def _gelu_tanh(x):
    """x/2·(1 + tanh u) with the hardware's tanh (relative error 2^-11); two special functions less than exactly."""
    u = x * (0.7978845608028654 + 0.03567740813636141 * (x * x))
    t = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=gl.float32, is_pure=True, pack=1)
    half = 0.5 * x
    return half * t + half


@gluon.jit
def _multiply_tiles(
    y_tile, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, y_scale_ptr, M, N,
    a_scale_stride, y_scale_stride, amax_min, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
    group: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
    QUANTIZE: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    rows_a_group: gl.constexpr = y_desc.block_shape[0]
    width: gl.constexpr = y_desc.block_shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 32])
    unused = gl.zeros([rows_a_group, width], gl.int32, layout)
    stage = 0
    phase = 0
    x_phase = 0
    for tile in range(gl.program_id(0), m_blocks * n_blocks, gl.num_programs(0)):
        m_block, n_block = _tile_of(tile, m_blocks, n_blocks, L2_ROWS)
        first = (m_block * GROUPS + group) * rows_a_group
        rows = first + gl.arange(0, rows_a_group, gl.SliceLayout(1, layout))
        # Rows past the end are computed with the last row's scales and never written.
        a_scales = a_scale_ptr + gl.minimum(rows, M - 1)
        w_scales = w_scale_ptr + n_block * k_blocks
        scale = gl.load(a_scales) * gl.load(w_scales)
        total = gl.zeros([rows_a_group, width], gl.float32, layout)
        for k_block in range(k_blocks):
            mbarrier.wait(ready.index(stage), phase)
            product = warpgroup_mma(
                a_tiles.index(stage * GROUPS + group),
                w_tiles.index(stage).permute((1, 0)),
                unused,
                use_acc=False,
                is_async=True,
            )
            following = gl.minimum(k_block + 1, k_blocks - 1)
            next_scale = gl.load(a_scales + following.to(gl.int64) * a_scale_stride) * gl.load(w_scales + following)
            product = warpgroup_mma_wait(0, deps=[product])
            mbarrier.arrive(free.index(stage))
            total += product.to(gl.float32) * scale[:, None]
            scale = next_scale
            stage, phase = _next_stage(stage, phase, STAGES)

        columns = n_block * width + gl.arange(0, width, gl.SliceLayout(0, layout))
        if HAS_BIAS:
            total += gl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(gl.float32)[None, :]
        if GELU:
            total = _gelu_tanh(total)
        tma.store_wait(0)  # the last tile has left y_tile
        if RESIDUAL:
            mbarrier.expect(x_arrived, rows_a_group * width * 2)
            load_tile(x_desc, [first, n_block * width], x_arrived, y_tile)
            mbarrier.wait(x_arrived, x_phase)
            x_phase ^= 1
            if GATE:
                total *= gl.load(gate_ptr + columns, mask=columns < N, other=0.0)[None, :]
            total += y_tile.load(layout).to(gl.float32)
        if QUANTIZE:
            amax = gl.maximum(gl.max(gl.abs(total), axis=1), amax_min)
            codes = gl.minimum(total * (128.0 / amax)[:, None] + _ROUND_MAGIC, _CODE_MAX)
            y_tile.store(codes.to(gl.int32, bitcast=True).to(gl.int8))
            y_scales = y_scale_ptr + n_block.to(gl.int64) * y_scale_stride + rows
            gl.store(y_scales, amax * (1.0 / 128.0), mask=rows < M)
        else:
            y_tile.store(total.to(y_tile.dtype))
        fence_async_shared()
        store_tile(y_desc, [first, n_block * width], y_tile)
    tma.store_wait(0)


# A sample's scales begin wherever the sample before it ends.
@gluon.jit(do_not_specialize=["M", "a_scale_stride", "y_scale_stride"], do_not_specialize_on_alignment=["a_scale_ptr"])
def _linear_kernel(
    a_desc,  # int8 [M, K], blocks of 64×128
    w_desc,  # int8 [N, K], blocks of 128×128
    y_desc,  # [M, N], blocks of 64×128; int8 codes where QUANTIZE
    x_desc,  # [M, N] as y where RESIDUAL
    a_scale_ptr,  # fp32 [K/128, M]
    w_scale_ptr,  # fp32 [N/128, K/128]
    bias_ptr,  # [N]
    gate_ptr,  # fp32 [N]
    y_scale_ptr,  # fp32 [N/128, M] where QUANTIZE
    M,
    N,
    K,
    a_scale_stride,
    y_scale_stride,
    amax_min,
    HAS_BIAS: gl.constexpr,
    GELU: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATE: gl.constexpr,
    QUANTIZE: gl.constexpr,
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
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    x_arrived = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS)
    for group in gl.static_range(GROUPS):
        mbarrier.init(x_arrived.index(group), count=1)

    m_blocks = gl.cdiv(M, GROUPS * rows)
    n_blocks = gl.cdiv(N, columns)
    k_blocks = K // depth
    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_multiply_tiles, (
                y_tiles.index(0), x_arrived.index(0), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, y_scale_ptr, M, N, a_scale_stride, y_scale_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                0, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(1), x_arrived.index(1), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, y_scale_ptr, M, N, a_scale_stride, y_scale_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                1, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(2), x_arrived.index(2), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr,
                gate_ptr, y_scale_ptr, M, N, a_scale_stride, y_scale_stride, amax_min, a_tiles, w_tiles, ready, free,
                m_blocks, n_blocks, k_blocks,
                2, HAS_BIAS, GELU, RESIDUAL, GATE, QUANTIZE, GROUPS, STAGES, L2_ROWS,
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
    y_scale: Tensor | None = None,
    residual: GatedResidual | None = None,
) -> None:
    """Launch the GEMM into `y` [M, N]: 16-bit, or int8 with its `y_scale` fp32 [N/128, M].

    Samples with gates of their own are launched one by one: a tile would have to look up each row's gate.
    """
    if residual is None or residual.gate is None or residual.gate.shape[0] == 1:
        _launch(a, w, bias, gelu, y, y_scale, residual)
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
    y_scale: Tensor | None,
    residual: GatedResidual | None,
) -> None:
    (m, k), n = a.codes.shape, w.shape[0]
    gate = None if residual is None or residual.gate is None else residual.gate.to(torch.float32).contiguous()
    y_desc, w_scale = _descriptor(y, GROUP_ROWS), w.scale.contiguous()
    tiles = triton.cdiv(m, GROUPS * GROUP_ROWS) * triton.cdiv(n, BLOCK)
    with torch.cuda.device_of(y):
        _linear_kernel[(min(tiles, multiprocessors(y.device)),)](
            _descriptor(a.codes, GROUP_ROWS),
            _descriptor(w.codes.contiguous(), BLOCK),
            y_desc,
            y_desc if residual is None else _descriptor(residual.x.reshape(m, n), GROUP_ROWS),
            a.scale,
            w_scale,
            y if bias is None else bias,
            w_scale if gate is None else gate,
            w_scale if y_scale is None else y_scale,
            m,
            n,
            k,
            a.scale.stride(0),
            0 if y_scale is None else y_scale.stride(0),
            AMAX_FLOOR,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            GATE=gate is not None,
            QUANTIZE=y_scale is not None,
            GROUPS=GROUPS,
            STAGES=STAGES if y_scale is None else STAGES_CODES,
            L2_ROWS=L2_ROWS,
            MULTIPLY_REGISTERS=MULTIPLY_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )


@functools.cache
def _layout(dtype: torch.dtype, rows: int) -> gl.NVMMASharedLayout:
    element = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, BLOCK], element)


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x, [rows, BLOCK], _layout(x.dtype, rows))
