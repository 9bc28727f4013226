"""The shipped UI workflows, help pages and templates in ComfyUI's real frontend, in headless chromium.

Screenshots go to ``TURBOWAN_SCREENSHOTS`` if set, else to the test's own folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import frontend, make_browser
from browser.frontend import WORKFLOWS, shipped_prompt
from host import make_venv
from host.server import REPO, ComfyProcess
from PIL import Image

CHINESE = "TurboPromptCache"  # the node that is shown in Chinese as well
HELP = sorted((REPO / "web" / "docs").glob("*.md"))
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyProcess]:
    checkout = make_venv.comfyui_dir()
    python = checkout and make_venv.venv_python(checkout)
    if python is None:
        pytest.skip("no ComfyUI checkout with an environment (tests/host/make_venv.py)")
    lacking = make_browser.lacking()
    if lacking:
        pytest.skip(f"no {', '.join(lacking)} (tests/browser/make_browser.py)")
    with frontend.comfyui(checkout, python, tmp_path_factory.mktemp("browser")) as process:
        yield process


@pytest.fixture(scope="module")
def seen(process: ComfyProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What drive.cjs reports."""
    shots = Path(os.environ.get("TURBOWAN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots")).resolve()
    printed = frontend.drive("drive.cjs", process, shots, help=[path.stem for path in HELP], chinese=CHINESE)
    return json.loads(printed) | {"shots": shots}


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
    exported, shipped = seen["workflows"][name]["prompt"], shipped_prompt(name)
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


def test_the_doctors_report_has_room(seen: dict[str, Any]) -> None:
    report, (width, height) = seen["doctor"]["text"], seen["doctor"]["size"]
    assert "ComfyUI uses cpu" in report
    assert width >= 700
    assert height >= 500


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
