"""Output nodes that report on latents and images as one JSON text in their UI output."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import av
import torch

CATEGORY = "testing"


def report(data: dict) -> dict:
    """The UI output that ``Run.report`` reads."""
    return {"ui": {"report": [json.dumps(data)]}}


def _statistics(tensor: torch.Tensor) -> dict:
    data = tensor.detach().cpu().contiguous()
    return {
        "shape": list(data.shape),
        "dtype": str(data.dtype),
        "mean": data.float().mean().item(),
        "std": data.float().std().item(),
        "finite": bool(torch.isfinite(data).all()),
        "sha256": hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest(),
    }


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


class TestLatentProbe:
    """Shape, moments and hash of a LATENT's samples."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"samples": ("LATENT",)}}

    RETURN_TYPES = ()
    FUNCTION = "probe"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def probe(self, samples: dict) -> dict:
        return report(_statistics(samples["samples"]) | {"keys": sorted(samples)})


class TestImageProbe:
    """Shape, moments and hash of an IMAGE."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES = ()
    FUNCTION = "probe"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def probe(self, image: torch.Tensor) -> dict:
        return report(_statistics(image))


class TestVideoProbe:
    """Class of a VIDEO in memory and hashes of its packets."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"video": ("VIDEO",)}}

    RETURN_TYPES = ()
    FUNCTION = "probe"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def probe(self, video: Any) -> dict:
        source = video.get_stream_source()
        with av.open(io.BytesIO(source.getvalue())) as container:
            packets = [hashlib.sha256(bytes(packet)).hexdigest() for packet in container.demux() if packet.size]
        return report({"class": type(video).__name__, "packets": packets})


class TestConditioningProbe:
    """Keys and tensor shapes of a CONDITIONING's first entry; of what is no tensor, the type."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    RETURN_TYPES = ()
    FUNCTION = "probe"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def probe(self, conditioning: list) -> dict:
        text, extra = conditioning[0]
        data = {"text": _statistics(text)}
        data |= {k: _statistics(v) for k, v in extra.items() if isinstance(v, torch.Tensor)}
        return report(data | {"others": {k: type(v).__name__ for k, v in extra.items() if k not in data}})


class TestCompare:
    """Relative difference ``|a - b| / |b|`` of two LATENTs, and whether they are equal to the bit."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"a": ("LATENT",), "b": ("LATENT",)}}

    RETURN_TYPES = ()
    FUNCTION = "compare"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def compare(self, a: dict, b: dict) -> dict:
        x, y = a["samples"], b["samples"]
        data = {"a": _statistics(x), "b": _statistics(y), "same_shape": x.shape == y.shape}
        if x.shape == y.shape:
            data |= {"equal": torch.equal(x, y), "relative": _relative(x, y)}
        return report(data)


class TestCompareImages:
    """``TestCompare`` for IMAGEs."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"a": ("IMAGE",), "b": ("IMAGE",)}}

    RETURN_TYPES = ()
    FUNCTION = "compare"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def compare(self, a: torch.Tensor, b: torch.Tensor) -> dict:
        return TestCompare().compare({"samples": a}, {"samples": b})


class TestCompareConditionings:
    """``TestCompare`` for one tensor of two CONDITIONINGs' first entries."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"a": ("CONDITIONING",), "b": ("CONDITIONING",), "key": ("STRING", {})}}

    RETURN_TYPES = ()
    FUNCTION = "compare"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    def compare(self, a: list, b: list, key: str) -> dict:
        x, y = (conditioning[0][1][key] for conditioning in (a, b))
        told = TestCompare().compare({"samples": x}, {"samples": y})
        data = json.loads(told["ui"]["report"][0])
        return report(data | {"same_device": x.device == y.device})


NODES = (
    TestLatentProbe,
    TestImageProbe,
    TestVideoProbe,
    TestConditioningProbe,
    TestCompare,
    TestCompareImages,
    TestCompareConditionings,
)
