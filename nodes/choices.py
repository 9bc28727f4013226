"""What the nodes' menus offer; no import, so that nodes register before torch work starts."""

from __future__ import annotations

CATEGORY = "TurboWan"

ATTENTIONS = ["auto", "sla", "sagesla", "dense", "sageattention"]
PRECISIONS = ["auto", "exact", "int8", "channelwise", "fp8", "bf16"]
NOISE_ORDERS = ["comfy", "upstream"]
SAMPLERS = ["sde", "ode"]

MAX_SEED = 2**64 - 1
MAX_SIDE = 16384

# resolution → aspect (width:height) → (width, height), as TurboDiffusion samples them
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "480p": {"16:9": (832, 480), "9:16": (480, 832), "1:1": (640, 640), "4:3": (640, 480), "3:4": (480, 640)},
    "720p": {"16:9": (1280, 720), "9:16": (720, 1280), "1:1": (960, 960), "4:3": (960, 720), "3:4": (720, 960)},
}
ADAPTIVE = "adaptive"
CUSTOM = "custom"
