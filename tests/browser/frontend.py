"""ComfyUI with its frontend, as the shipped workflows want it, and the scripts that drive a chromium over it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from browser import make_browser
from host.server import REPO, ComfyProcess
from PIL import Image

WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))
FIRST_FRAME = REPO / "demo" / "first_frame.png"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # titles and values on the screenshots at any zoom
}


def shipped_prompt(name: str) -> dict[str, Any]:
    """The workflow of that name in API format."""
    return json.loads((REPO / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def comfyui(checkout: Path, python: Path, base: Path) -> ComfyProcess:
    """In the empty folder `base`, not started yet."""
    _place_named_files(base)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    return ComfyProcess(checkout, python, base, packs={"comfyui-turbowan": REPO})


def drive(script: str, process: ComfyProcess, shots: Path, **config: Any) -> str:
    """Run a script of this folder on that frontend; its pictures lie in `shots`, what it prints is returned."""
    shots.mkdir(parents=True, exist_ok=True)
    config |= {
        "playwright": str(make_browser.playwright()),
        "chromium": make_browser.chromium(),
        "url": process.url,
        "workflows": {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS},
        "shots": str(shots),
    }
    file = shots / "config.json"
    file.write_text(json.dumps(config))
    command = [make_browser.node(), str(Path(__file__).with_name(script)), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    file.unlink()
    if done.returncode:
        raise RuntimeError(
            f"{script} must exit with 0, came {done.returncode}:\n{done.stderr}\n{process.log()[-2000:]}"
        )
    return done.stdout


def _place_named_files(base: Path) -> None:
    """Files under the names that the workflows ask for, so that no menu shows a missing one: empty, or a picture."""
    folders = {"file": "models/diffusion_models", "vae_name": "models/vae", "clip_name": "models/text_encoders"}
    for workflow in WORKFLOWS:
        for node in shipped_prompt(workflow.stem).values():
            for name, value in node["inputs"].items():
                if name in folders:
                    (base / folders[name]).mkdir(parents=True, exist_ok=True)
                    (base / folders[name] / value).touch()
                elif node["class_type"] == "LoadImage" and name == "image":
                    (base / "input").mkdir(exist_ok=True)
                    with Image.open(FIRST_FRAME) as picture:
                        picture.save(base / "input" / value)
