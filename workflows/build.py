"""Writes the shipped workflows: one description of each graph → UI format, API format and a thumbnail.

`python workflows/build.py` needs Pillow and the installed pack; users never run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.catalogue import RELEASES, TEXT_ENCODER, HubFile
from turbowan.turbo_core.catalogue import VAE as DECODER

HERE = Path(__file__).resolve().parent
SEED_CONTROL = "randomize"  # a second widget value that the frontend keeps after every seed
THUMBNAIL_WIDTH = 640
FRONTEND_ONLY = ("MarkdownNote",)
OURS = "Turbo"  # begins the ids of this pack's nodes

PACK, CORE = "comfyui-turbowan", "comfy-core"  # in the Comfy Registry

QUANTIZED = {file.name: file for release in RELEASES.values() for file in release.files()}
(T2V,) = (file.name for file in RELEASES["t2v-1.3b"].network())
I2V_HIGH, I2V_LOW = (file.name for file in RELEASES["i2v-a14b"].network())
ENCODER, VAE = TEXT_ENCODER.name, DECODER.name

# class → sockets in the order of its schema, as (name, type)
INPUTS: dict[str, list[tuple[str, str]]] = {
    "CLIPTextEncode": [("clip", "CLIP")],
    "TurboPromptCache": [("clip", "CLIP")],
    "TurboT2VSampler": [("model", "MODEL"), ("conditioning", "CONDITIONING"), ("latent", "LATENT")],
    "TurboI2VSampler": [
        ("model_high", "MODEL"),
        ("model_low", "MODEL"),
        ("conditioning", "CONDITIONING"),
        ("latent", "LATENT"),
    ],
    "TurboImageToVideo": [("conditioning", "CONDITIONING"), ("vae", "VAE"), ("image", "IMAGE")],
    "TurboVAEDecodeVideo": [("samples", "LATENT"), ("vae", "VAE"), ("audio", "AUDIO")],
    "SaveVideo": [("video", "VIDEO")],
}
OUTPUTS: dict[str, list[tuple[str, str]]] = {
    "TurboLoader": [("MODEL", "MODEL")],
    "CLIPLoader": [("CLIP", "CLIP")],
    "CLIPTextEncode": [("CONDITIONING", "CONDITIONING")],
    "TurboPromptCache": [("CONDITIONING", "CONDITIONING")],
    "VAELoader": [("VAE", "VAE")],
    "LoadImage": [("IMAGE", "IMAGE"), ("MASK", "MASK")],
    "EmptyHunyuanLatentVideo": [("LATENT", "LATENT")],
    "TurboT2VSampler": [("LATENT", "LATENT")],
    "TurboI2VSampler": [("LATENT", "LATENT")],
    "TurboImageToVideo": [("conditioning", "CONDITIONING"), ("latent", "LATENT")],
    "TurboVAEDecodeVideo": [("VIDEO", "VIDEO")],
}


@dataclass(frozen=True)
class Node:
    """One node: where it stands, its widget values in the order of its schema, its links by input name."""

    kind: str
    box: tuple[int, int, int, int]  # x, y, width, height
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)  # input → (node, output)
    title: str = ""


Graph = dict[str, Node]


def text_to_video() -> Graph:
    prompt = (
        "A red fox trots through a snowy birch forest at sunrise, its breath steaming in the cold air. Powder snow "
        "bursts from under its paws and glitters in the low golden light. The camera glides beside it at eye level, "
        "with birch trunks passing softly out of focus in the foreground. Natural colours, fine fur detail, "
        "cinematic, shallow depth of field."
    )
    return {
        "note": note(
            (-420, 0, 380, 420),
            "TurboWan: text to video in 4 steps",
            [T2V],
            "The 14B files (TurboWan2.1-T2V-14B-480P and -720P) load in the same node. Write long English prompts; "
            "there is no negative prompt and no CFG. Length is 4n+1 frames at 16 fps.",
        ),
        "model": Node("TurboLoader", (0, 0, 420, 150), loader(T2V)),
        "clip": Node("CLIPLoader", (0, 200, 420, 110), {"clip_name": ENCODER, "type": "wan", "device": "default"}),
        "vae": Node("VAELoader", (0, 360, 420, 60), {"vae_name": VAE}),
        "text": Node("CLIPTextEncode", (460, 0, 420, 200), {"text": prompt}, {"clip": ("clip", 0)}, "Prompt"),
        **sampled((832, 480), "video/TurboWan_T2V"),
    }


def image_to_video() -> Graph:
    prompt = (
        "The scene comes to life with gentle, natural movement: a light breeze stirs hair, fabric and leaves, and the "
        "light shifts slowly. The camera pushes in steadily and smoothly. Realistic motion, sharp detail, cinematic."
    )
    return {
        "note": note(
            (-420, 0, 380, 460),
            "TurboWan: image to video in 4 steps",
            [I2V_HIGH, I2V_LOW],
            "The video takes the image's shape at the area of the chosen resolution; 480p is faster than 720p. "
            "The two experts take turns on the GPU. Length is 4n+1 frames at 16 fps.",
        ),
        "high": Node("TurboLoader", (0, 0, 420, 150), loader(I2V_HIGH), title="High-noise expert"),
        "low": Node("TurboLoader", (0, 200, 420, 150), loader(I2V_LOW), title="Low-noise expert"),
        "clip": Node("CLIPLoader", (0, 400, 420, 110), {"clip_name": ENCODER, "type": "wan", "device": "default"}),
        "vae": Node("VAELoader", (0, 560, 420, 60), {"vae_name": VAE}),
        "text": Node("CLIPTextEncode", (460, 0, 420, 180), {"text": prompt}, {"clip": ("clip", 0)}, "Prompt"),
        "image": Node("LoadImage", (460, 230, 420, 390), {"image": "example.png"}, title="First frame"),
        "start": Node(
            "TurboImageToVideo",
            (920, 0, 320, 230),
            {
                "resolution": "720p",
                "aspect": "adaptive",
                "width": 1280,
                "height": 720,
                "length": 81,
                "batch_size": 1,
            },
            {"conditioning": ("text", 0), "vae": ("vae", 0), "image": ("image", 0)},
        ),
        "sampler": Node(
            "TurboI2VSampler",
            (920, 290, 320, 270),
            {"seed": 0, "steps": 4, "sigma_max": 200.0, "boundary": 0.9, "sampler": "ode", "noise": "comfy"},
            {
                "model_high": ("high", 0),
                "model_low": ("low", 0),
                "conditioning": ("start", 0),
                "latent": ("start", 1),
            },
        ),
        **video((1280, 0), "video/TurboWan_I2V"),
    }


def demo() -> Graph:
    return {
        "note": Node(
            "MarkdownNote",
            (-420, 0, 380, 420),
            {
                "text": "## TurboWan: the demo model\n\nIt lies in this pack: nothing to download, no text encoder, "
                "and a CPU is enough. It was trained on coloured shapes that move, and runs through the same nodes as "
                "the released models.\n\nWrite *a* COLOUR SHAPE MOTION:\n\n"
                "- red, yellow, green, cyan, blue, purple\n- ball, square, triangle, star, cross\n"
                "- moving to the left, moving to the right, moving up, moving down, bouncing to the left, "
                "bouncing to the right, spinning in place (a ball does not)"
            },
            title="Note",
        ),
        "model": Node("TurboLoader", (0, 0, 420, 150), loader(demo_bundle.T2V.name)),
        "vae": Node("VAELoader", (0, 360, 420, 60), {"vae_name": demo_bundle.VAE.name}),
        "text": Node(
            "TurboPromptCache",
            (460, 0, 420, 200),
            {"text": "a red ball bouncing to the right", "disk_mb": 1024},
            title="Prompt",
        ),
        **sampled((160, 160), "video/TurboWan_Demo"),
    }


def loader(file: str) -> dict[str, Any]:
    return {"file": file, "attention": "auto", "topk": 0.1, "precision": "auto"}


def sampled(size: tuple[int, int], prefix: str) -> Graph:
    """Text to video behind the nodes "model", "text" and "vae"."""
    width, height = size
    return {
        "latent": Node(
            "EmptyHunyuanLatentVideo",
            (460, 250, 420, 130),
            {"width": width, "height": height, "length": 81, "batch_size": 1},
            title="Size and length",
        ),
        "sampler": Node(
            "TurboT2VSampler",
            (920, 0, 320, 200),
            {"seed": 0, "steps": 4, "sigma_max": 80.0, "noise": "comfy"},
            {"model": ("model", 0), "conditioning": ("text", 0), "latent": ("latent", 0)},
        ),
        **video((1280, 0), prefix),
    }


def video(corner: tuple[int, int], prefix: str) -> Graph:
    x, y = corner
    return {
        "decode": Node(
            "TurboVAEDecodeVideo",
            (x, y, 370, 130),
            {"fps": 16.0, "crf": 23},
            {"samples": ("sampler", 0), "vae": ("vae", 0)},
        ),
        "save": Node(
            "SaveVideo",
            (x, y + 190, 370, 420),
            {"filename_prefix": prefix, "format": "auto", "codec": "auto"},
            {"video": ("decode", 0)},
        ),
    }


def note(box: tuple[int, int, int, int], title: str, files: list[str], text: str) -> Node:
    needed = (QUANTIZED[file] for file in [*files, ENCODER, VAE])
    lines = [f"- `models/{file.folder}`: [{file.name}]({file.page})" for file in needed]
    return Node("MarkdownNote", box, {"text": "\n".join([f"## {title}", "", "Files:", *lines, "", text])}, title="Note")


def _download(file: HubFile) -> dict[str, str]:
    """The file as ComfyUI's missing-model dialog wants it."""
    return {"name": file.name, "url": file.url, "directory": file.folder}


def to_ui(graph: Graph) -> dict[str, Any]:
    """The frontend's own format."""
    ids = {name: index for index, name in enumerate(graph, 1)}
    links = list(_links(graph, ids))
    nodes = [_ui_node(graph[name], ids[name], links) for name in graph]
    return {
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _links(graph: Graph, ids: dict[str, int]) -> Iterator[list[Any]]:
    number = 0
    for name, node in graph.items():
        for slot, (input_name, kind) in enumerate(INPUTS.get(node.kind, [])):
            if input_name in node.links:
                number += 1
                source, output = node.links[input_name]
                yield [number, ids[source], output, ids[name], slot, kind]


def _ui_node(node: Node, number: int, links: list[list[Any]]) -> dict[str, Any]:
    inputs = [
        {
            "name": name,
            "type": kind,
            "link": next((link[0] for link in links if link[3:5] == [number, slot]), None),
        }
        for slot, (name, kind) in enumerate(INPUTS.get(node.kind, []))
    ]
    outputs = [
        {
            "name": name,
            "type": kind,
            "links": [link[0] for link in links if link[1:3] == [number, slot]] or None,
            "slot_index": slot,
        }
        for slot, (name, kind) in enumerate(OUTPUTS.get(node.kind, []))
    ]
    return {
        "id": number,
        "type": node.kind,
        "pos": list(node.box[:2]),
        "size": list(node.box[2:]),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": _properties(node),
        "widgets_values": list(_widget_values(node)),
    }


def _properties(node: Node) -> dict[str, Any]:
    if node.kind in FRONTEND_ONLY:
        return {}
    models = [_download(QUANTIZED[value]) for value in node.widgets.values() if value in QUANTIZED]
    return {
        "cnr_id": PACK if node.kind.startswith(OURS) else CORE,
        "Node name for S&R": node.kind,
        **({"models": models} if models else {}),
    }


def _widget_values(node: Node) -> Iterator[Any]:
    for name, value in node.widgets.items():
        yield value
        if name == "seed":
            yield SEED_CONTROL
    if node.kind == "LoadImage":
        yield "image"  # the upload button


def to_api(graph: Graph) -> dict[str, Any]:
    """What POST /prompt takes."""
    ids = {name: str(index) for index, name in enumerate(graph, 1)}
    return {
        ids[name]: {
            "class_type": node.kind,
            "inputs": node.widgets | {key: [ids[source], output] for key, (source, output) in node.links.items()},
            "_meta": {"title": node.title or node.kind},
        }
        for name, node in graph.items()
        if node.kind not in FRONTEND_ONLY
    }


def draw(graph: Graph, title: str) -> Image.Image:
    """A schematic of the graph, as the template browser's thumbnail."""
    nodes = {name: node for name, node in graph.items() if node.kind not in FRONTEND_ONLY}
    right = max(node.box[0] + node.box[2] for node in nodes.values())
    bottom = max(node.box[1] + node.box[3] for node in nodes.values())
    scale, margin, top = (THUMBNAIL_WIDTH - 40) / right, 20, 56
    image = Image.new("RGB", (THUMBNAIL_WIDTH, int(bottom * scale) + top + margin), "#1c1f26")
    pen = ImageDraw.Draw(image)
    pen.text((margin, 16), title, fill="#ffffff", font=ImageFont.load_default(24))

    def place(x: float, y: float) -> tuple[float, float]:
        return margin + x * scale, top + y * scale

    for node in nodes.values():
        for source, _ in node.links.values():
            start = nodes[source].box
            pen.line(
                [place(start[0] + start[2], start[1] + 20), place(node.box[0], node.box[1] + 20)],
                fill="#7c8698",
                width=2,
            )
    for node in nodes.values():
        x, y, width, height = node.box
        ours = node.kind.startswith(OURS)
        colour = "#2f6fde" if ours else "#3a4150"
        pen.rounded_rectangle([place(x, y), place(x + width, y + height)], 5, fill=colour, outline="#11141a")
        label = node.title or node.kind
        size = min(12, int((width - 20) * scale / (0.6 * len(label))))
        pen.text(place(x + 12, y + 12), label, fill="#ffffff", font=ImageFont.load_default(size))
    return image


def main() -> None:
    for name, title, graph in (
        ("TurboWan_T2V", "TurboWan · text to video", text_to_video()),
        ("TurboWan_I2V", "TurboWan · image to video", image_to_video()),
        ("TurboWan_Demo", "TurboWan · the demo model", demo()),
    ):
        for path, content in ((HERE / f"{name}.json", to_ui(graph)), (HERE / "api" / f"{name}.json", to_api(graph))):
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(graph, title).save(HERE / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
