"""The host's streaming readies a model once, and again after whatever changes what it made ready."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import alone, models
from host.server import REPO

SCRIPT = Path(__file__).with_name("streamed_loads.py")
KEPT = {
    "again": "first",
    "lora again": "lora",
    "shifted": "without",
    "unshifted": "without",
    "pages given up": "without",
}  # and what they find


@pytest.fixture(scope="module")
def loads(checkout: Path, host_python: Path, models_dir: Path) -> dict[str, dict]:
    """What each of the script's loads did."""
    report = alone.report_of(SCRIPT, host_python, checkout, REPO, models_dir / "diffusion_models" / models.T2V_QUANT)
    if report is None:
        pytest.skip("this ComfyUI has no streaming patcher")
    return report


@pytest.fixture(scope="module")
def readies_once(checkout: Path) -> bool:
    return "def restore_loaded_backups" in (checkout / "comfy" / "model_patcher.py").read_text()


@pytest.mark.parametrize("load", KEPT)
def test_an_unchanged_model_stays_as_it_is(loads: dict, load: str, readies_once: bool) -> None:
    done, found = loads[load], loads[KEPT[load]]
    shift = 3.0 if load == "shifted" else found["shift"]
    if readies_once:
        assert done == found | {"listed": False, "kept": True, "shift": shift}
    else:
        assert (done["listed"], done["lora"], done["shift"]) == (True, found["lora"], shift)
    assert done["prioritized"]


CHANGED = (
    "first", "lora", "without", "reloaded", "after unloading", "after a failure", "injected", "injected again",
    "without injection", "replaced", "replaced again",
)  # fmt: skip


@pytest.mark.parametrize("load", CHANGED)
def test_a_changed_model_is_made_ready(loads: dict, load: str, readies_once: bool) -> None:
    done = loads[load]
    assert done["listed"]
    assert done["lora"] == (load == "lora")
    if readies_once:  # and copies small weights ahead
        assert (done["kept"], done["placed"]) == (False, True)
        assert done["bytes"] == loads["first"]["bytes"] > 0


@pytest.mark.parametrize("unloaded", ["all given up", "unloaded"])
def test_unloading_gives_the_originals_back(loads: dict, unloaded: str) -> None:
    assert loads[unloaded] == {"placed": False, "bytes": 0}
