"""Weights in codes as comfy-kitchen tensor types, so that ComfyUI streams, patches and saves them itself.

Block-int8 is here, codes with a scale per output channel in `_row_layout`. The tensor's logical dtype and shape are
the dense weight's; its data are int8 codes [N, K] and an fp32 scale [ceil(N/128), ceil(K/128)]. Where the host rounds
stochastically (LoRA on a quantized weight):

    code = clamp(floor(x · 128 / amax + u), -128, 127),   u ~ U[0, 1) from the seed
"""

from __future__ import annotations

import torch
from comfy_kitchen.tensor import QuantizedTensor, get_layout_class, register_layout_class
from torch import Tensor

from ..kernels.block_int8 import BLOCK, BlockInt8, quantize_weight
from ..kernels.row_codes import RowCodes
from ._codes_layout import CodesLayout
from ._row_layout import ROW_LAYOUTS


class TurboBlockInt8Layout(CodesLayout):
    """128×128 blocks of int8 codes with one fp32 scale each."""

    VALUE = BlockInt8

    @classmethod
    def quantize(
        cls,
        tensor: Tensor,
        scale: Tensor | str | None = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
    ) -> tuple[Tensor, CodesLayout.Params]:
        """Codes and parameters; the scale always follows the tensor, whatever `scale` says."""
        quantized = quantize_weight(tensor)
        codes = quantized.codes
        if stochastic_rounding:
            codes = _round_stochastically(tensor, quantized.scale, stochastic_rounding)
        return codes, cls.params(tensor, quantized.scale)


def register() -> None:
    """Make the layouts known to comfy-kitchen; the first copy of the pack in a process wins."""
    for layout in (TurboBlockInt8Layout, *ROW_LAYOUTS.values()):
        try:
            get_layout_class(layout.__name__)
        except KeyError:
            register_layout_class(layout.__name__, layout)


def wrap(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> QuantizedTensor:
    """The host's tensor for given codes and scale (2-D: of blocks, 1-D: of rows), with the logical dtype `dtype`."""
    layout = TurboBlockInt8Layout if scale.ndim == 2 else ROW_LAYOUTS[codes.dtype]
    params = get_layout_class(layout.__name__).Params(scale=scale, orig_dtype=dtype, orig_shape=tuple(codes.shape))
    return QuantizedTensor(codes, layout.__name__, params)


def unwrap(tensor: QuantizedTensor) -> BlockInt8 | RowCodes:
    """The core's value for a tensor of these layouts."""
    scale = tensor._params.scale
    return (BlockInt8 if scale.ndim == 2 else RowCodes)(tensor._qdata, scale)


def _round_stochastically(tensor: Tensor, scale: Tensor, seed: int) -> Tensor:
    """Codes of [N, K] `tensor` under [⌈N/128⌉, ⌈K/128⌉] scales, 128 rows at a time."""
    generator = torch.Generator(device=tensor.device).manual_seed(seed)
    codes = torch.empty(tensor.shape, dtype=torch.int8, device=tensor.device)
    for block, start in enumerate(range(0, tensor.shape[0], BLOCK)):
        rows = tensor[start : start + BLOCK].to(torch.float32)
        columns = scale[block].repeat_interleave(BLOCK)[: rows.shape[1]]
        dither = torch.rand(rows.shape, generator=generator, device=rows.device)
        codes[start : start + BLOCK] = (rows / columns + dither).floor_().clamp_(-128, 127).to(torch.int8)
    return codes
