"""The classic patcher brings the large weights from their file to a GPU and takes the mapped ones back."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import alone, models
from host.server import REPO

SCRIPT = Path(__file__).with_name("classic_loads.py")
CODES = 20  # of the tiny model's weights
READ = 25  # and dense ones as large as those


@pytest.fixture(scope="module")
def loads(checkout: Path, host_python: Path, models_dir: Path) -> dict[str, dict]:
    """Where the weights were after each of the script's loads."""
    return alone.report_of(SCRIPT, host_python, checkout, REPO, models_dir / "diffusion_models" / models.T2V_QUANT)


@pytest.mark.parametrize("load", ["loaded", "loaded again", "reloaded", "without"])
def test_what_fits_is_read_from_the_file(loads: dict, load: str) -> None:
    everything = loads["patcher"]["parameters"]
    assert loads[load] == {"on the GPU": everything, "read": READ, "mapped": 0, "codes": "block"}


def test_the_host_patches_a_lora_s_weights_itself(loads: dict) -> None:
    everything = loads["patcher"]["parameters"]
    assert loads["lora"] == {"on the GPU": everything, "read": READ - 1, "mapped": 0, "codes": "block"}


@pytest.mark.parametrize("load", ["begin", "unloaded", "end"])
def test_unloading_puts_the_mapped_weights_back(loads: dict, load: str) -> None:
    assert loads[load] == {"on the GPU": 0, "read": 0, "mapped": CODES, "codes": "block"}


def test_cancelling_puts_the_mapped_weights_back(loads: dict) -> None:
    """ComfyUI forgets a model whose load is interrupted, so that nothing else would ever free its memory."""
    assert loads["cancelled"] == {"on the GPU": 0, "read": 0, "mapped": CODES, "codes": "block"}


def test_what_does_not_fit_stays_mapped(loads: dict) -> None:
    assert loads["patcher"]["class"] == "_ClassicPatcher"
    assert loads["in part"]["read"] == 0
    assert loads["in part"]["mapped"] == CODES
