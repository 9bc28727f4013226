"""The demo model's files, which lie in the pack itself, in folders named as ComfyUI's."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

FOLDER = Path(__file__).parents[1] / "demo" / "bundle"

# From there:
T2V = PurePosixPath("diffusion_models/TurboWanDemo-T2V-quant.pth")
I2V_HIGH = PurePosixPath("diffusion_models/TurboWanDemo-I2V-high-quant.safetensors")
I2V_LOW = PurePosixPath("diffusion_models/TurboWanDemo-I2V-low-quant.safetensors")
VAE = PurePosixPath("vae/turbowan_demo_vae.safetensors")
TEXT_ENCODER = PurePosixPath("text_encoders/turbowan_demo_umt5.safetensors")
PROMPTS = PurePosixPath("turbowan_prompts/turbowan_demo.safetensors")
"""A prompt book: what the text encoder says to the prompts that the demo model was made for."""

FILES = (T2V, I2V_HIGH, I2V_LOW, VAE, TEXT_ENCODER, PROMPTS)
NAMES = frozenset(file.name for file in FILES)
