"""How a tile of the int8 GEMMs for Hopper (`gemm_gluon`) ends, in one warpgroup.

    y = GELU(total + bias) · gate + x           each where asked for, in fp32
    written as 16 bit, with Σ y² of each row, or as int8 codes with a scale for each row and 128 columns

The tile of x arrives by TMA in the shared memory from which the tile of y leaves.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from .hopper_gluon import codes_of_rows, load_tile, store_tile


@gluon.jit
def _gelu_tanh_doubled(x):
    """x·(1 + tanh u), twice GELU, with the hardware's tanh (relative error 2^-11)."""
    u = x * (0.7978845608028654 + 0.03567740813636141 * (x * x))
    t = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=gl.float32, is_pure=True, pack=1)
    return x * t + x


@gluon.jit
def fetch_residual(x_desc, x_arrived, y_tile, m_block, n_block):
    """The residual's tile, into the room of the tile of y that it is added to."""
    rows: gl.constexpr = x_desc.block_shape[0]
    columns: gl.constexpr = x_desc.block_shape[1]
    tma.store_wait(0)  # the last tile has left the room
    mbarrier.expect(x_arrived, rows * columns * 2)
    load_tile(x_desc, [m_block * rows, n_block * columns], x_arrived, y_tile)


@gluon.jit
def finish_tile(
    total, y_tile, y_desc, x_arrived, x_phase, bias, gate, parts_ptr, m_block, n_block, M, parts_stride, amax_min,
    HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr, QUANTIZE: gl.constexpr,
    SQUARES: gl.constexpr,
):  # fmt: skip
    rows: gl.constexpr = y_desc.block_shape[0]
    columns: gl.constexpr = y_desc.block_shape[1]
    layout: gl.constexpr = total.type.layout
    if HAS_BIAS:
        total += gl.convert_layout(bias, gl.SliceLayout(0, layout)).to(gl.float32)[None, :]
    unit: gl.constexpr = 0.5 if GELU else 1.0  # of what total holds from here on; a power of two rounds nothing
    if GELU:
        total = _gelu_tanh_doubled(total)
    if GELU and not QUANTIZE:
        total *= unit
    if RESIDUAL:
        if GATE:
            total *= gl.convert_layout(gate, gl.SliceLayout(0, layout))[None, :]
        mbarrier.wait(x_arrived, x_phase)
        total += y_tile.load(layout).to(gl.float32)
    else:
        tma.store_wait(0)  # the last tile has left y_tile
    row = m_block * rows + gl.arange(0, rows, gl.SliceLayout(1, layout))
    parts = parts_ptr + n_block.to(gl.int64) * parts_stride + row
    if QUANTIZE:
        amax = gl.maximum(gl.max(gl.abs(total), axis=1), amax_min / unit)
        y_tile.store(codes_of_rows(total, amax))
        gl.store(parts, amax * (unit / 128.0), mask=row < M)
    else:
        y = total.to(y_tile.dtype)
        y_tile.store(y)
        if SQUARES:
            written = y.to(gl.float32)
            gl.store(parts, gl.sum(written * written, axis=1), mask=row < M)
    fence_async_shared()
    store_tile(y_desc, [m_block * rows, n_block * columns], y_tile)
