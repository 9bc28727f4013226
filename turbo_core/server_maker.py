"""Videos made by a running ComfyUI: the pack's shipped workflows, with a request's settings, through its queue."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .comfy_client import ComfyClient, Workflow
from .errors import ServerError, SettingsError
from .expert import NetworkSettings
from .model_choice import Choice
from .parameters import parameters
from .request import Request
from .server_files import require_node

WORKFLOWS = Path(__file__).parents[1] / "workflows" / "api"
NAMES = {"t2v": "TurboWan_T2V.json", "i2v": "TurboWan_I2V.json"}
# kind of node → the stage that its progress is of
STAGES = {
    "CLIPTextEncode": "prompt",
    "TurboImageToVideo": "image",
    "TurboLoader": "weights",
    "TurboT2VSampler": "sampling",
    "TurboI2VSampler": "sampling",
    "TurboVAEDecodeVideo": "frames",
}


class ServerMaker:
    """Queues one video after another on a ComfyUI; `choice` has its names of the files (`server_files`)."""

    def __init__(
        self,
        client: ComfyClient,
        choice: Choice,
        settings: NetworkSettings,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._client, self._choice, self._settings, self._progress = client, choice, settings, progress
        self._there: set[str] = set()
        """Kinds of nodes that the server has, of those that it was asked for."""

    def check(self, request: Request) -> None:
        """Raise where the server lacks nodes for the request."""
        request.check("server")
        if request.family == "t2v" and request.chosen_sampler != "sde":
            raise SettingsError(
                f"sampler: TurboT2VSampler on the server samples with sde, got {request.sampler!r}; leave it out"
            )
        shipped = _shipped(request)
        self._check_number(len(_loaders(shipped)))
        for kind in {node["class_type"] for node in shipped.values()} - self._there:
            require_node(self._client, kind)
            self._there.add(kind)

    def prepare(self, requests: Sequence[Request]) -> None:
        """Nothing: the server keeps what it has loaded."""

    def make(self, request: Request, output: Path) -> None:
        self.check(request)
        workflow = self.workflow(request)

        def report(node: str, done: int, total: int) -> None:
            stage = STAGES.get(workflow.get(node, {}).get("class_type", ""))
            if stage is not None:
                self._progress(stage, done, total)

        outputs = self._client.run(workflow, report)
        file = next(_videos(outputs), None)
        if file is None:
            raise ServerError("server: the workflow must leave an MP4, it left none; look at the server's log")
        self._client.download(file, output, lambda done, total: self._progress("download", done, total))

    def workflow(self, request: Request) -> Workflow:
        """The shipped workflow with the request's settings; uploads its image."""
        workflow = copy.deepcopy(_shipped(request))
        own = self._inputs(request)
        for node in workflow.values():
            node["inputs"] |= own.get(node["class_type"], {})
        for node, file in zip(_loaders(workflow), self._choice.networks, strict=True):
            workflow[node]["inputs"]["file"] = file
        return workflow

    def _inputs(self, request: Request) -> dict[str, dict[str, Any]]:
        """What the request sets, by kind of node."""
        told = parameters(request, self._choice, self._settings)
        size = {"width": request.size[0], "height": request.size[1], "length": request.frames}
        sampling = {name: told[name] for name in ("seed", "steps", "sigma_max", "noise")}
        inputs = {
            "TurboLoader": {name: told[name] for name in ("attention", "topk", "precision")},
            "CLIPLoader": {"clip_name": self._choice.text_encoder},
            "VAELoader": {"vae_name": self._choice.vae},
            "CLIPTextEncode": {"text": literal(request.prompt)},
            "EmptyHunyuanLatentVideo": size,
            "TurboT2VSampler": sampling,
            "TurboImageToVideo": size | {"resolution": "custom"},
            "TurboI2VSampler": sampling | {"sampler": told["sampler"], "boundary": request.boundary},
        }
        if request.image is not None:
            inputs["LoadImage"] = {"image": self._client.upload_image(request.image)}
        return inputs

    def _check_number(self, loaders: int) -> None:
        """The shipped workflow loads as many networks as were named."""
        named = self._choice.networks
        if len(named) < loaders:
            raise SettingsError(
                f"server: the image-to-video workflow must get both experts, got {named[0]} alone; name the other one "
                "with --low FILE"
            )
        if len(named) > loaders:
            raise SettingsError(
                f"server: the text-to-video workflow must get one model, got {' and '.join(named)}; leave out --low, "
                "or give an image with --image"
            )


def _shipped(request: Request) -> Workflow:
    path = WORKFLOWS / NAMES[request.family]
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"server: {path} must be there, this installation came without it; clone the repository"
        ) from error


def _loaders(workflow: Workflow) -> list[str]:
    """The nodes that load networks, the high-noise expert's first."""
    sampler = next(node for node in workflow.values() if node["class_type"] in ("TurboT2VSampler", "TurboI2VSampler"))
    links = sampler["inputs"]
    return [links["model"][0]] if "model" in links else [links["model_high"][0], links["model_low"][0]]


def literal(prompt: str) -> str:
    """The prompt as ComfyUI takes it without reading weights into its parentheses."""
    return prompt.replace("(", "\\(").replace(")", "\\)")


def _videos(outputs: dict[str, Any]) -> Iterator[dict[str, str]]:
    for node in outputs.values():
        for entries in node.values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and str(entry.get("filename", "")).lower().endswith(".mp4"):
                    yield entry
