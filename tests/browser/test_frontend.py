"""The shipped UI workflows, help pages and templates in ComfyUI's real frontend, in headless chromium.

Screenshots go to ``TURBOWAN_SCREENSHOTS`` if set, else to the test's own folder.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import make_browser
from host import make_venv
from host.server import REPO, ComfyProcess
from PIL import Image

WORKFLOWS = sorted((REPO / "workflows").glob("*.json"))
CHINESE = "TurboPromptCache"  # the node that is shown in Chinese as well
HELP = sorted((REPO / "web" / "docs").glob("*.md"))
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # titles and values on the screenshots at any zoom
}
pytestmark = pytest.mark.browser


def _shipped_prompt(name: str) -> dict[str, Any]:
    return json.loads((REPO / "workflows" / "api" / f"{name}.json").read_text())


def _place_named_files(base: Path) -> None:
    """Empty files under the names that the workflows ask for, so that no menu shows a missing one."""
    folders = {"file": "models/diffusion_models", "vae_name": "models/vae", "clip_name": "models/text_encoders"}
    for workflow in WORKFLOWS:
        for node in _shipped_prompt(workflow.stem).values():
            for name, value in node["inputs"].items():
                if name in folders:
                    (base / folders[name]).mkdir(parents=True, exist_ok=True)
                    (base / folders[name] / value).touch()
                elif node["class_type"] == "LoadImage" and name == "image":
                    (base / "input").mkdir(exist_ok=True)
                    Image.new("RGB", (64, 64)).save(base / "input" / value)


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyProcess]:
    checkout = make_venv.comfyui_dir()
    python = checkout and make_venv.venv_python(checkout)
    if python is None:
        pytest.skip("no ComfyUI checkout with an environment (tests/host/make_venv.py)")
    lacking = make_browser.lacking()
    if lacking:
        pytest.skip(f"no {', '.join(lacking)} (tests/browser/make_browser.py)")
    base = tmp_path_factory.mktemp("browser")
    _place_named_files(base)
    settings = base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    with ComfyProcess(checkout, python, base, packs={"comfyui-turbowan": REPO}) as process:
        yield process


@pytest.fixture(scope="module")
def seen(frontend: ComfyProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What drive.cjs reports."""
    shots = Path(os.environ.get("TURBOWAN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    shots.mkdir(parents=True, exist_ok=True)
    config = {
        "playwright": str(make_browser.playwright()),
        "chromium": make_browser.chromium(),
        "url": frontend.url,
        "workflows": {path.stem: json.loads(path.read_text()) for path in WORKFLOWS},
        "help": [path.stem for path in HELP],
        "chinese": CHINESE,
        "shots": str(shots),
    }
    file = shots / "config.json"
    file.write_text(json.dumps(config))
    command = [make_browser.node(), str(Path(__file__).with_name("drive.cjs")), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    file.unlink()
    assert done.returncode == 0, f"{done.stderr}\n{frontend.log()[-2000:]}"
    return json.loads(done.stdout) | {"shots": shots}


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_workflow_opens_without_a_missing_node(seen: dict[str, Any], name: str) -> None:
    report = seen["workflows"][name]
    assert report["missing"] == []
    assert report["red"] == []
    assert report["dialogs"] == []
    with Image.open(seen["shots"] / f"{name}.png") as shot:
        assert shot.size == (2200, 1200)


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS])
def test_workflow_exports_the_shipped_api_file(seen: dict[str, Any], name: str) -> None:
    """Equal in classes, inputs and values; a newer frontend may add inputs to the host's own nodes."""
    exported, shipped = seen["workflows"][name]["prompt"], _shipped_prompt(name)
    assert exported.keys() == shipped.keys()
    for node, data in shipped.items():
        assert exported[node]["class_type"] == data["class_type"]
        inputs, wanted = exported[node]["inputs"], data["inputs"]
        assert {key: inputs.get(key) for key in wanted} == wanted
        assert inputs.keys() == wanted.keys() or not data["class_type"].startswith("Turbo")


@pytest.mark.parametrize("page", HELP, ids=lambda path: path.stem)
def test_help_page_is_shown(seen: dict[str, Any], page: Path) -> None:
    words = next(line for line in page.read_text().splitlines() if len(line.split()) > 6 and line[0].isalpha())
    plain = words.replace("`", "").replace("*", "").split("[")[0].strip()
    assert plain[:40] in seen["help"][page.stem]


def test_a_node_speaks_chinese(seen: dict[str, Any]) -> None:
    words = json.loads((REPO / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))[CHINESE]
    page = (REPO / "web" / "docs" / CHINESE / "zh.md").read_text(encoding="utf-8")
    shown = seen["chinese"]
    assert shown["title"] == words["display_name"]
    assert words["inputs"]["clip"]["name"] in shown["inputs"]
    assert page.splitlines()[2][:20] in shown["help"]


def test_template_browser_lists_the_workflows(seen: dict[str, Any]) -> None:
    for path in WORKFLOWS:
        assert path.stem in seen["templates"]
        assert any(address.endswith(f"/{path.stem}.jpg") for address in seen["served"])


def test_no_script_error(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
