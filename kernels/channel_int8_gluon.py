"""The channel-int8 GEMM of `channel_int8` for Hopper, in Gluon: warp-specialised and persistent (`gemm_gluon`).

A tile's whole sum stays in the int32 accumulator, so nothing stands between a warpgroup's products: it begins one while
the last one runs, and waits for that to give its stage back. 1,150–1,390 TOPS on an H200 where block scales allow
910–1,090; 1536 columns with a gated residual are as slow as there (docs/facts.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from .block_int8 import BLOCK
from .gemm_finish_gluon import fetch_residual, finish_tile
from .gemm_gluon import (
    COPY_REGISTERS,
    GROUP_ROWS,
    GROUPS,
    L2_ROWS,
    MULTIPLY_REGISTERS,
    STAGES,
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
from .row_codes import RowCodes


@gluon.jit
def _multiply_tiles(
    y_tile, x_arrived, y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr, M, N, a_tiles, w_tiles, ready,
    free, m_blocks, n_blocks, k_blocks,
    group: gl.constexpr, HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
    GROUPS: gl.constexpr, STAGES: gl.constexpr, L2_ROWS: gl.constexpr,
):  # fmt: skip
    rows_a_group: gl.constexpr = y_desc.block_shape[0]
    width: gl.constexpr = y_desc.block_shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 32])
    vector: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])  # a column a thread
    unused = gl.zeros([rows_a_group, width], gl.int32, layout)
    total = gl.zeros([rows_a_group, width], gl.float32, layout)
    bias = gl.zeros([width], gl.float32, vector)
    gate = gl.zeros([width], gl.float32, vector)
    gated_last: gl.constexpr = GATE and GELU  # a gate behind GELU cannot be part of the scale
    stage = 0
    phase = 0
    x_phase = 1
    m_block = 0
    n_block = 0
    tiles = m_blocks * n_blocks
    band, index, band_step, index_step, band_tiles = first_tile(n_blocks, L2_ROWS)
    # The last round multiplies whatever lies there, so that no branch stands between the products.
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
        if tile != gl.program_id(0):
            finish_tile(
                total, y_tile, y_desc, x_arrived, x_phase, bias, gate, a_scale_ptr, m_block, n_block, M, 0, 0.0,
                HAS_BIAS, GELU, RESIDUAL, GATE=gated_last, QUANTIZE=False, SQUARES=False,
            )  # fmt: skip
        m_block = next_m * GROUPS + group
        n_block = next_n
        columns = n_block * width + gl.arange(0, width, vector)
        w_scale = gl.load(w_scale_ptr + columns, mask=columns < N, other=0.0)
        if HAS_BIAS:
            bias = gl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(gl.float32)
        if GATE:
            gate = gl.load(gate_ptr + columns, mask=columns < N, other=0.0)
        if GATE and not GELU:
            w_scale *= gate
            bias *= gate
        w_scale = gl.convert_layout(w_scale, gl.SliceLayout(0, layout))
        rows = m_block * rows_a_group + gl.arange(0, rows_a_group, gl.SliceLayout(1, layout))
        a_scale = gl.load(a_scale_ptr + gl.minimum(rows, M - 1))  # rows past the end are never written
        product = warpgroup_mma_wait(0, deps=[product])
        read_stage = stage  # multiplied, not given back yet
        stage, phase = next_stage(stage, phase, STAGES)
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
                a_tiles.index(stage * GROUPS + group), w_tiles.index(stage).permute((1, 0)), product, is_async=True
            )
            product = warpgroup_mma_wait(1, deps=[product])
            # The stage before this one is given back once all four warps have read it; both barriers stand here while
            # a product is under way, instead of one that Triton would put before the next wait.
            barrier()
            mbarrier.arrive(free.index(read_stage))
            barrier()
            read_stage = stage
            stage, phase = next_stage(stage, phase, STAGES)
        product = warpgroup_mma_wait(0, deps=[product])
        total = product.to(gl.float32) * a_scale[:, None] * w_scale[None, :]
        barrier()
        mbarrier.arrive(free.index(read_stage), pred=more)
    tma.store_wait(0)


# A sample's scales begin wherever the sample before it ends.
@gluon.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["a_scale_ptr"])
def _linear_kernel(
    a_desc,  # int8 [M, K], blocks of 64×128
    w_desc,  # int8 [N, K], blocks of 128×128
    y_desc,  # [M, N], blocks of 64×128
    x_desc,  # [M, N] as y where RESIDUAL, else None
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
    a_tiles, w_tiles, y_tiles, ready, free, x_arrived = rooms(a_desc, w_desc, y_desc, RESIDUAL, GROUPS, STAGES)
    m_blocks = gl.cdiv(M, GROUPS * a_desc.block_shape[0])
    n_blocks = gl.cdiv(N, w_desc.block_shape[0])
    k_blocks = K // a_desc.block_shape[1]
    # One argument list a partition: a tuple bound to a name would turn its constants into run-time values.
    # fmt: off
    gl.warp_specialize(
        [
            (_multiply_tiles, (
                y_tiles.index(0), x_arrived.index(0), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr,
                M, N, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
                0, HAS_BIAS, GELU, RESIDUAL, GATE, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(1), x_arrived.index(1), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr,
                M, N, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
                1, HAS_BIAS, GELU, RESIDUAL, GATE, GROUPS, STAGES, L2_ROWS,
            )),
            (_multiply_tiles, (
                y_tiles.index(2), x_arrived.index(2), y_desc, x_desc, a_scale_ptr, w_scale_ptr, bias_ptr, gate_ptr,
                M, N, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks,
                2, HAS_BIAS, GELU, RESIDUAL, GATE, GROUPS, STAGES, L2_ROWS,
            )),
            (copy_tiles, (
                a_desc, w_desc, a_tiles, w_tiles, ready, free, m_blocks, n_blocks, k_blocks, GROUPS, STAGES, L2_ROWS,
            )),
        ],
        [4, 4, 1],
        [MULTIPLY_REGISTERS, MULTIPLY_REGISTERS, COPY_REGISTERS],
    )
    # fmt: on


def launch_gluon(
    a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, x: Tensor | None, gate: Tensor | None, y: Tensor
) -> None:
    """Write into y [M, N], 16-bit; x [M, N] and gate fp32 [N] are the residual's."""
    (m, k), n = a.shape, w.shape[0]
    w_scale = w.scale.contiguous()
    with torch.cuda.device_of(y):
        _linear_kernel[(programs(m, n, y.device),)](
            descriptor(a.codes, GROUP_ROWS),
            descriptor(w.codes.contiguous(), BLOCK),
            descriptor(y, GROUP_ROWS),
            None if x is None else descriptor(x, GROUP_ROWS),
            a.scale,
            w_scale,
            y if bias is None else bias,
            w_scale if gate is None else gate,
            m,
            n,
            k,
            HAS_BIAS=bias is not None,
            GELU=gelu,
            RESIDUAL=x is not None,
            GATE=gate is not None,
            GROUPS=GROUPS,
            STAGES=STAGES,
            L2_ROWS=L2_ROWS,
            MULTIPLY_REGISTERS=MULTIPLY_REGISTERS,
            COPY_REGISTERS=COPY_REGISTERS,
            num_warps=4,
        )
