"""What the layouts of weights in 8-bit codes share: codes and one tensor of fp32 scales; see `_layout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor
from comfy_kitchen.tensor.base import BaseLayoutParams
from torch import Tensor

from ..kernels.block_int8 import BlockInt8
from ..kernels.row_codes import RowCodes


class CodesLayout(QuantizedLayout):
    """Codes of a dense weight under fp32 scales, as the core's `VALUE` has them."""

    VALUE: ClassVar[type[BlockInt8] | type[RowCodes]]

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """scale, orig_dtype and orig_shape, as the base class has them."""

    @classmethod
    def params(cls, tensor: Tensor, scale: Tensor) -> Params:
        """For the codes of a dense `tensor`."""
        return cls.Params(scale=scale, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        return cls.VALUE(qdata, params.scale).dequantize(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}
