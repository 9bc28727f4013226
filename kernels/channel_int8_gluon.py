"""The GEMM of `channel_int8` for Hopper, in Gluon: warp-specialised and persistent like `block_int8_gluon`.

A program owns a multiprocessor and walks through 128×256 tiles of y. One warp copies tiles of codes to shared memory by
TMA; two warpgroups of 64 rows each keep their share of the whole sum in int32, 128 registers a thread (as two halves,
because wgmma s8 is 128 columns wide here), and always have one K block's products under way while they wait for the
next. A K block moves 48 KiB for 2·128·256·128 operations. The residual's tile is fetched while the sum is made.
"""

from __future__ import annotations

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

from .block_int8 import GatedResidual
from .block_int8_gluon import copy_tiles, descriptor, gelu_tanh, multiprocessors, next_stage, tile_of
from .row_codes import RowCodes

GROUPS = 2  # warpgroups that multiply, 64 rows each
GROUP_ROWS = 64
HALF = 128  # columns of one wgmma, and of one tile that is written
STAGES = 3  # 48 KiB each; the finished tile takes 64 KiB of the 227 KiB there are
# The entry count is 168 registers a thread (12 warps); the copying warp hands its share to the multiplying ones.
MULTIPLY_REGISTERS, COPY_REGISTERS = 240, 24
L2_ROWS = 16  # row blocks walked together, so that their weight tiles stay in the L2 cache


@gluon.jit
def _expect_residual(x_desc, tile, arrived, row, column):
    mbarrier.expect(arrived, tile.shape[0] * tile.shape[1] * 2)
    tma.async_copy_global_to_shared(x_desc, [row, column], arrived, tile)


@gluon.jit
def _write_half(
    total, y_desc, y_tile, x_arrived, x_phase, a_scale, w_scale_ptr, bias_ptr, gate_ptr, row, column, N,
    layout: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    columns = column + gl.arange(0, y_desc.block_shape[1], gl.SliceLayout(0, layout))
    inside = columns < N
    y = total.to(gl.float32) * a_scale[:, None] * gl.load(w_scale_ptr + columns, mask=inside, other=0.0)[None, :]
    if HAS_BIAS:
        y += gl.load(bias_ptr + columns, mask=inside, other=0.0).to(gl.float32)[None, :]
    if GELU:
        y = gelu_tanh(y)
    if RESIDUAL:
        mbarrier.wait(x_arrived, x_phase)
        if GATE:
            y *= gl.load(gate_ptr + columns, mask=inside, other=0.0)[None, :]
        y += y_tile.load(layout).to(gl.float32)
    y_tile.store(y.to(y_tile.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(y_desc, [row, column], y_tile)


@gluon.jit
def _multiply_tiles(
    y_tiles, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, M, N, a_tiles, w_tiles, ready,
    free, m_blocks, n_blocks, k_blocks,
    group: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    rows_a_group: gl.constexpr = y_desc.block_shape[0]
    half: gl.constexpr = y_desc.block_shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, half, 32])
    left_tile = y_tiles.index(2 * group)
    right_tile = y_tiles.index(2 * group + 1)
    left_arrived = x_arrived.index(2 * group)
    right_arrived = x_arrived.index(2 * group + 1)
    stage = 0
    phase = 0
    x_phase = 0
    for tile in range(gl.program_id(0), m_blocks * n_blocks, gl.num_programs(0)):
        m_block, n_block = tile_of(tile, m_blocks, n_blocks, L2_ROWS)
        row = (m_block * GROUPS + group) * rows_a_group
        column = n_block * 2 * half
        rows = row + gl.arange(0, rows_a_group, gl.SliceLayout(1, layout))
        a_scale = gl.load(a_scale_ptr + rows, mask=rows < M, other=0.0)
        if RESIDUAL:
            tma.store_wait(0)  # the last tile has left its place
            _expect_residual(x_desc, left_tile, left_arrived, row, column)
            _expect_residual(x_desc, right_tile, right_arrived, row, column + half)
        left = gl.zeros([rows_a_group, half], gl.int32, layout)
        right = gl.zeros([rows_a_group, half], gl.int32, layout)
        for k_block in range(k_blocks):
            mbarrier.wait(ready.index(stage), phase)
            a = a_tiles.index(stage * GROUPS + group)
            w = w_tiles.index(stage)
            more = k_block > 0
            left = warpgroup_mma(a, w.slice(0, half).permute((1, 0)), left, use_acc=more, is_async=True)
            right = warpgroup_mma(a, w.slice(half, half).permute((1, 0)), right, use_acc=more, is_async=True)
            left, right = warpgroup_mma_wait(2, deps=[left, right])  # the products of the K block before are there
            mbarrier.arrive(free.index((stage + STAGES - 1) % STAGES), pred=more)
            stage, phase = next_stage(stage, phase, STAGES)
        left, right = warpgroup_mma_wait(0, deps=[left, right])
        mbarrier.arrive(free.index((stage + STAGES - 1) % STAGES))
        if not RESIDUAL:
            tma.store_wait(0)
        _write_half(
            left, y_desc, left_tile, left_arrived, x_phase, a_scale, w_scale_ptr, bias_ptr, gate_ptr, row, column, N,
            layout, HAS_BIAS, GELU, RESIDUAL, GATE,
        )  # fmt: skip
        _write_half(
            right, y_desc, right_tile, right_arrived, x_phase, a_scale, w_scale_ptr, bias_ptr, gate_ptr, row,
            column + half, N, layout, HAS_BIAS, GELU, RESIDUAL, GATE,
        )  # fmt: skip
        x_phase ^= 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"])
def _linear_kernel(
    a_desc,  # int8 [M, K], blocks of 64×128
    w_desc,  # int8 [N, K], blocks of 256×128
    y_desc,  # [M, N], blocks of 64×128
    x_desc,  # [M, N] as y where RESIDUAL
    a_scale_ptr,  # fp32 [M]
    w_scale_ptr,  # fp32 [N]
    bias_ptr,  # [N]
    gate_ptr,  # fp32 [N]
    M,
    N,
    K,
    HAS_BIAS: gl.constexpr,
    GELU: gl.constexpr,
    RESIDUAL: gl.constexpr,
    GATE: gl.constexpr,
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
    y_tiles = gl.allocate_shared_memory(y_desc.dtype, [2 * GROUPS, rows, columns // 2], y_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    x_arrived = gl.allocate_shared_memory(gl.int64, [2 * GROUPS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=GROUPS)
    for half in gl.static_range(2 * GROUPS):
        mbarrier.init(x_arrived.index(half), count=1)

    m_blocks = gl.cdiv(M, GROUPS * rows)
    n_blocks = gl.cdiv(N, columns)
    k_blocks = K // depth
    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_multiply_tiles, (
                y_tiles, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, M, N, a_tiles,
                w_tiles, ready, free, m_blocks, n_blocks, k_blocks, 0, HAS_BIAS, GELU, RESIDUAL, GATE, GROUPS, STAGES,
                L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, M, N, a_tiles,
                w_tiles, ready, free, m_blocks, n_blocks, k_blocks, 1, HAS_BIAS, GELU, RESIDUAL, GATE, GROUPS, STAGES,
                L2_ROWS,
            )),
            (copy_tiles, (
                a_desc, w_desc, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks, GROUPS, STAGES, L2_ROWS,
            )),
        ],
        [4, 1],
        [MULTIPLY_REGISTERS, COPY_REGISTERS],
    )
    # fmt: on


def linear_gluon(
    a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, y: Tensor, residual: GatedResidual | None
) -> None:
    """Launch the GEMM into `y` [M, N], 16-bit.

    Samples with gates of their own are launched one by one: a tile would have to look up each row's gate.
    """
    if residual is None or residual.gate is None or residual.gate.shape[0] == 1:
        _launch(a, w, bias, gelu, y, residual)
        return
    batch = residual.gate.shape[0]
    length = y.shape[0] // batch
    for sample in range(batch):
        rows = slice(sample * length, (sample + 1) * length)
        gated = GatedResidual(residual.x[sample : sample + 1], residual.gate[sample : sample + 1])
        _launch(RowCodes(a.codes[rows], a.scale[rows]), w, bias, gelu, y[rows], gated)


def _launch(
    a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, y: Tensor, residual: GatedResidual | None
) -> None:
    (m, k), n = a.shape, w.shape[0]
    gate = None if residual is None or residual.gate is None else residual.gate.to(torch.float32).contiguous()
    y_desc = descriptor(y, GROUP_ROWS)
    tiles = triton.cdiv(m, GROUPS * GROUP_ROWS) * triton.cdiv(n, 2 * HALF)
    with torch.cuda.device_of(y):
        _linear_kernel[(min(tiles, multiprocessors(y.device)),)](
            descriptor(a.codes, GROUP_ROWS),
            descriptor(w.codes.contiguous(), 2 * HALF),
            y_desc,
            y_desc if residual is None else descriptor(residual.x.reshape(m, n), GROUP_ROWS),
            a.scale,
            w.scale.contiguous(),
            y if bias is None else bias,
            a.scale if gate is None else gate,
            m,
            n,
            k,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=residual is not None,
            GATE=gate is not None,
            GROUPS=GROUPS,
            STAGES=STAGES,
            L2_ROWS=L2_ROWS,
            MULTIPLY_REGISTERS=MULTIPLY_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )
