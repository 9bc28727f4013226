"""Weights with one 8-bit scale per output channel as comfy-kitchen tensor types; see `_layout` for what that is for.

Data: codes [N, K], int8 or e4m3, and an fp32 scale [N].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.row_codes import RowCodes, quantize_rows_ref, round_stochastically
from ._codes_layout import CodesLayout

ROWS_AT_ONCE = 1024  # bounds the fp32 copies of a weight


class _RowLayout(CodesLayout):
    """Rows of codes with one fp32 scale each."""

    CODES: torch.dtype
    VALUE = RowCodes

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
    ) -> tuple[Tensor, CodesLayout.Params]:
        """Codes and parameters; the scale always follows the tensor, whatever `scale` says."""
        generator = torch.Generator(device=tensor.device).manual_seed(stochastic_rounding or 0)
        codes = torch.empty(tensor.shape, dtype=cls.CODES, device=tensor.device)
        scales = torch.empty(tensor.shape[0], dtype=torch.float32, device=tensor.device)
        for start in range(0, tensor.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            nearest = quantize_rows_ref(tensor[rows], cls.CODES)
            codes[rows], scales[rows] = nearest.codes, nearest.scale
            if stochastic_rounding:
                scaled = tensor[rows].to(torch.float32) / nearest.scale[:, None]
                codes[rows] = round_stochastically(scaled, cls.CODES, generator)
        return codes, cls.params(tensor, scales)


class TurboChannelInt8Layout(_RowLayout):
    """int8 with one scale per output channel."""

    CODES = torch.int8


class TurboChannelFp8Layout(_RowLayout):
    """e4m3 with one scale per output channel."""

    CODES = torch.float8_e4m3fn


ROW_LAYOUTS: dict[torch.dtype, type[_RowLayout]] = {
    layout.CODES: layout for layout in (TurboChannelInt8Layout, TurboChannelFp8Layout)
}
