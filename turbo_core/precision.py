"""How exact a device can be."""

import torch

NO_FP64 = ("mps", "xpu")  # Apple's GPUs have none; Intel's consumer GPUs neither


def widest_float(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on devices that have nothing wider."""
    return torch.float32 if device.type in NO_FP64 else torch.float64
