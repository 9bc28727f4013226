"""The smallest kernel that shows that Triton compiles, launches and computes on a device."""

import torch
import triton
import triton.language as tl


@triton.jit
def _increment_kernel(x_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0)
    tl.store(x_ptr + offsets, x + 1, mask=inside)


def run_probe(device: torch.device) -> None:
    """Raise if a Triton kernel cannot be compiled and run on `device`, or computes wrongly."""
    x = torch.arange(16, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _increment_kernel[(1,)](x, 15, BLOCK=16)
    expected = [*range(1, 16), 15]
    if x.tolist() != expected:
        raise RuntimeError(f"a probe kernel computed {x.tolist()} instead of {expected}")
