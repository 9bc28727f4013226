"""What fits is read from the file to where the host's streaming looks for it, once; the rest is the host's."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import alone, models
from host.server import REPO

SCRIPT = Path(__file__).with_name("filled_loads.py")
READ = 25  # of the tiny model's 29 streamed weights; the others are too small to be worth it


@pytest.fixture(scope="module")
def report(checkout: Path, host_python: Path, models_dir: Path) -> dict:
    """What the script's loads did."""
    found = alone.report_of(SCRIPT, host_python, checkout, REPO, models_dir / "diffusion_models" / models.T2V_QUANT)
    if found is None:
        pytest.skip("this ComfyUI has no streaming patcher, or one from before 0.23, which reads by itself")
    return found


@pytest.fixture(scope="module")
def loads(report: dict) -> dict[str, dict]:
    """What the host finds on its pages after each load."""
    return report["loads"]


def test_every_large_weight_is_read_once(loads: dict) -> None:
    assert [loads[load]["read"] for load in ("first", "again")] == [READ, 0]
    assert [loads[load]["lent"] for load in ("first", "again")] == [READ, READ]


FILLED = (
    "first", "lora", "without", "made room", "from a slow disk", "after cancelling", "fewer pages", "less room",
)  # fmt: skip


@pytest.mark.parametrize("load", FILLED)
def test_the_host_lends_what_the_file_holds(loads: dict, load: str) -> None:
    assert loads[load]["right"] == loads[load]["lent"] > 0


def test_layers_with_a_patched_weight_or_bias_are_the_host_s(loads: dict) -> None:
    assert (loads["first"]["patched"], loads["lora"]["patched"]) == ([True, True], [False, False])
    assert loads["lora"]["read"] == READ - 2


def test_layers_with_a_copy_of_the_host_s_are_the_host_s(loads: dict) -> None:
    assert loads["without"]["patched"] == [False, False]
    assert loads["without"]["read"] == READ - 2


def test_what_had_to_leave_is_read_again_while_that_is_fast(loads: dict) -> None:
    assert [loads[load]["read"] for load in ("made room", "from a slow disk", "after that")] == [READ - 2, READ - 2, 0]


def test_after_an_unloading_everything_is_read(loads: dict) -> None:
    assert loads["cancelled"]["read"] + loads["after cancelling"]["read"] == READ


def test_cancelling_ends_the_reading_alone(loads: dict) -> None:
    """The load does not raise, for ComfyUI would forget the model; the next one reads the rest."""
    assert loads["cancelled"]["read"] == 4
    assert loads["after cancelling"]["lent"] == READ


def test_a_failure_leaves_nothing_under_way(loads: dict) -> None:
    assert loads["failed"]["readers"] == 0


@pytest.mark.parametrize("load", ["fewer pages", "less room"])
def test_what_the_host_gives_up_last_is_read_first(report: dict, load: str) -> None:
    found, end = report["loads"][load], 3 * report["needed"] // 4
    assert 0 < found["up to"] <= end < found["left from"]


def test_no_page_stays_held(loads: dict) -> None:
    assert {load["pages held"] for load in loads.values()} == {0}


def test_a_long_load_shows_its_progress(report: dict) -> None:
    """In bytes, from the first weight to the last; ComfyUI leaves out what follows another report at once."""
    values = [value for value, _ in report["progress"]]
    assert len(values) > 1
    assert values == sorted(set(values))
    assert {total for _, total in report["progress"]} == {values[-1]}
