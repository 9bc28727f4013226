"""Every tolerance of the suite, by class of comparison, and the one way to compare.

The measure is ‖out − ref‖ / ‖ref‖ in fp64; NaN or infinity fails first. EXACT comparisons use torch.equal.
"""

import torch
from torch import Tensor

# fp32 against fp32 or fp64 in another order of summation.
SAME_MATHS_FP32 = 1e-5
# fp64 against fp64 in another order of summation.
SAME_MATHS_FP64 = 1e-12
# A kernel computing in fp32 from and to 16-bit, against the fp32 reference on the same inputs: output rounding.
ROUND_TRIP = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 1e-5}
# A kernel with 16-bit products (attention) against its fp32 reference on the same inputs.
HALF_PRODUCTS = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
# tanh.approx.f32 against tanh.
HARDWARE_TANH = 2**-11
# Scales of codes by two routes: the same maximum, divided.
CODE_SCALES = 1e-6
# Codes by two routes: those near a tie may fall one step apart. The step of e4m3 grows with the code.
TIED_CODES = {torch.int8: 2e-3, torch.float8_e4m3fn: 6e-3}
# Codes of GELU by the hardware's tanh.
TANH_CODES = {torch.int8: 1.5e-2, torch.float8_e4m3fn: 2.5e-2}
# Networks, layers and attention's output with int8 activations against those without.
INT8_NETWORK = 0.03
INT8_LAYER = 0.02
INT8_OUTPUT = 0.01
# A quantized recipe against fp32: floors of the signal-to-noise ratio in dB.
SQNR_BLOCK_INT8_WEIGHT_DB = 36.0
SQNR_BLOCK_INT8_LINEAR_DB = 34.0
SQNR_SAGE_SCORES_DB = 33.0
# Normal rows of 1,536 with a scale of their own, and a linear layer from such rows and such weights.
SQNR_ROW_CODES_DB = {torch.int8: 40.0, torch.float8_e4m3fn: 31.0}
SQNR_CHANNEL_LINEAR_DB = {torch.int8: 38.0, torch.float8_e4m3fn: 28.0}
# A tiny network whose weights alone are rounded, against the same network in fp32.
SQNR_CHANNEL_MODEL_DB = {torch.int8: 38.0, torch.float8_e4m3fn: 28.0}

# Latents sampled in a host, on tiny models. The same sampling with other rounding of its times or its batch.
SAME_SAMPLING = 1e-5
# TurboImageToVideo's conditioning and the host's own: the image is resized from and to the same size.
SAME_CONDITIONING = 1e-3
# One model at another precision or with all key blocks kept: the same weights, rounded elsewhere.
OTHER_PRECISION = 0.02
# int8 weights and the dense weights they stand for.
DEQUANTIZED = 5e-3
# A LoRA on dense weights and the same weights merged, one bf16 rounding apart.
LORA_DENSE = 0.01
# A LoRA on int8 weights, rounded to int8 again stochastically (step²/6 of variance), and the dense merged weights.
LORA_INT8 = 0.02
# The same with two LoRAs: larger weights, so larger steps.
LORAS_INT8 = 0.03
# A LoRA on streamed int8 weights, which then run dense, and the dense merged weights.
LORA_STREAMED = 0.05
# e4m3 weights and the dense weights they stand for, sampled; and with a LoRA, rounded to e4m3 again stochastically.
FP8_MODEL = 0.03
LORA_FP8 = 0.06
# Latents of a tiny model sampled in bf16 with int8 activations, and in fp32 with none (bf16 alone: 0.004); the mean
# step of 8-bit frames decoded in bf16 and in fp32 (measured on a CPU: 0.7).
SAMPLING_BF16 = 0.05
FRAMES_BF16 = 1.5
# Two VAEs' images in bf16, each 0.01 from fp32.
DECODES_BF16 = 0.03
# What must change a result changes it by more than this.
MOVED = 0.01
MOVED_SLIGHTLY = 1e-3


def relative_error(out: Tensor, ref: Tensor) -> float:
    """‖out − ref‖ / ‖ref‖ in fp64."""
    assert out.shape == ref.shape, f"shapes differ: {tuple(out.shape)} and {tuple(ref.shape)}"
    assert torch.isfinite(out).all(), "the output holds NaN or infinity"
    out, ref = out.double().cpu(), ref.double().cpu()
    return float((out - ref).norm() / ref.norm().clamp(min=1e-300))


def codes_agree(out: Tensor, ref: Tensor, limit: float | None = None) -> bool:
    """Codes, int8 or e4m3, no two of which are more than one step apart, and `limit` (TIED_CODES) in all."""
    assert out.dtype == ref.dtype
    wide_out, wide_ref = out.float().cpu(), ref.float().cpu()
    step = 1.0 if ref.dtype == torch.int8 else (wide_ref.abs() / 8).clamp(min=2**-9)
    near = bool(((wide_out - wide_ref).abs() <= step).all())
    return near and relative_error(wide_out, wide_ref) < (TIED_CODES[ref.dtype] if limit is None else limit)


def sqnr_db(out: Tensor, ref: Tensor) -> float:
    """20·log10(‖ref‖ / ‖out − ref‖)."""
    return -20 * torch.log10(torch.tensor(max(relative_error(out, ref), 1e-15))).item()
