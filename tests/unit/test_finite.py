from __future__ import annotations

import math

import pytest
import torch

from turbowan.turbo_core.finite import all_finite

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1234, -1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_value_is_found(value: float, place: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 17, 129).to(dtype)
    assert all_finite(x)
    x.view(-1)[place] = value
    assert not all_finite(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    x = torch.full((4, 5), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(torch.cat([x, -x]).T)
    assert all_finite(x[:0])
