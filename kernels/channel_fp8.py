"""e4m3 linear layers with one weight scale per output channel and one activation scale per row, by torch._scaled_mm.

    y[m,n] = (Σ_k a[m,k] · w[n,k])_fp32 · a_scale[m] · w_scale[n] + bias[n]

torch's own kernel (cuBLAS or CUTLASS, by version) is as fast as int8 in Triton or faster (docs/facts.md).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .block_int8 import GatedResidual
from .dispatch import Kernel
from .norm import add_to_residual
from .row_codes import RowCodes, quantize_rows_ref

MIN_CAPABILITY = (8, 9)
PROBE_ERROR = 1e-2  # bf16's rounding is near 2e-3; scales that are ignored or swapped give more than 0.1


class ScaledMm(Kernel):
    """`torch._scaled_mm` with a scale per row of both operands, where a small product by it is right."""

    def device_refusal(self, device: torch.device) -> str | None:
        return scaled_mm_refusal(device)


LINEAR = ScaledMm(
    name="channel-fp8 linear", last_dim_multiple=16, min_capability=MIN_CAPABILITY, backend="torch._scaled_mm"
)


def linear_ref(a: RowCodes, w: RowCodes, bias: Tensor | None, gelu: bool, dtype: torch.dtype) -> Tensor:
    """The formula above in fp32, then GELU(tanh) if asked. Returns [M, N] `dtype`."""
    y = a.codes.to(torch.float32) @ w.codes.to(torch.float32).T * a.scale[:, None] * w.scale[None]
    if bias is not None:
        y += bias.to(torch.float32)
    return (F.gelu(y, approximate="tanh") if gelu else y).to(dtype)


def linear(
    a: RowCodes,
    w: RowCodes,
    bias: Tensor | None,
    *,
    gelu: bool,
    like: Tensor,
    residual: GatedResidual | None = None,
) -> Tensor:
    """Quantized linear, optionally followed by GELU(tanh) and a gated residual; [M, N] in the dtype of `like`."""
    if LINEAR.accepts(like):
        y = _scaled_mm(a, w, bias).to(like.dtype)
        y = F.gelu(y, approximate="tanh") if gelu else y
    else:
        y = linear_ref(a, w, bias, gelu, like.dtype)
    if residual is None:
        return y
    return add_to_residual(residual, y.reshape(residual.x.shape)).reshape(-1, w.shape[0])


def scaled_mm_refusal(device: torch.device) -> str | None:
    """Why `torch._scaled_mm` cannot serve `device`, or None if it can."""
    if device.type != "cuda":
        return f"the device is {device.type}, not cuda"
    if torch.version.hip is not None:
        return "this is a ROCm build of torch, which has not been tested"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} has no fp8 (8.9, RTX 40, or newer has)"
    return _probe(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _probe(device_index: int) -> str | None:
    """Multiply once and compare: finds a torch without row scales, on this GPU or at all."""
    device = torch.device("cuda", device_index)
    generator = torch.Generator(device=device).manual_seed(0)
    a, w = (torch.randn(rows, 64, generator=generator, device=device) for rows in (48, 32))
    a = quantize_rows_ref(a * torch.linspace(0.1, 9, 48, device=device)[:, None], torch.float8_e4m3fn)
    w = quantize_rows_ref(w * torch.linspace(0.1, 9, 32, device=device)[:, None], torch.float8_e4m3fn)
    bias = torch.randn(32, generator=generator, device=device)
    try:
        y = _scaled_mm(a, w, bias)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of torch's abilities, and must not be remembered
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return f"torch {torch.__version__} does not scale fp8 products by row on this GPU ({_first_line(error)})"
    wanted = linear_ref(a, w, bias, False, torch.float32)
    error = float((y.float() - wanted).norm() / wanted.norm())
    return None if error < PROBE_ERROR else f"torch {torch.__version__} gets fp8 products wrong (error {error:.1e})"


def _scaled_mm(a: RowCodes, w: RowCodes, bias: Tensor | None) -> Tensor:
    """[M, N] bf16, the one dtype that every version of torch can write with scales per row."""
    return torch._scaled_mm(
        a.codes,
        w.codes.T,
        scale_a=a.scale[:, None],
        scale_b=w.scale[None],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
