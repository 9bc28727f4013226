"""The demo model's files, which lie in the pack itself."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "demo" / "bundle"

T2V = "TurboWanDemo-T2V-quant.pth"
I2V_HIGH = "TurboWanDemo-I2V-high-quant.safetensors"
I2V_LOW = "TurboWanDemo-I2V-low-quant.safetensors"
VAE = "turbowan_demo_vae.safetensors"
TEXT_ENCODER = "turbowan_demo_umt5.safetensors"
PROMPTS = "prompts.safetensors"
"""A prompt book: what the text encoder says to the prompts that the demo model was made for."""

NETWORKS = (T2V, I2V_HIGH, I2V_LOW)
FILES = (*NETWORKS, VAE, TEXT_ENCODER, PROMPTS)
