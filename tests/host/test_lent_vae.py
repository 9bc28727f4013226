"""The weights of a VAE that ComfyUI streams: lent for a decode where it keeps them, copied where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import alone, models
from host.client import ComfyClient
from host.graphs import TinyGraph, finished
from host.server import REPO, ComfyProcess
from safetensors.torch import save_file
from tolerances import DECODES_BF16

from turbowan.benchmarks import random_vae
from turbowan.turbo_core.vae_plan import BUDGET_SHARE

SCRIPT = Path(__file__).with_name("lent_vae.py")

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def report(checkout: Path, host_python: Path, models_dir: Path) -> dict:
    return alone.report_of(SCRIPT, host_python, checkout, REPO, models_dir / "vae" / models.VAE)


def test_lent_weights_decode_as_the_vaes_own(report: dict) -> None:
    assert report["same"]


def test_only_the_decoders_weights_are_asked_for(report: dict) -> None:
    assert "conv2" in report["asked"]
    assert "decoder.conv1" in report["asked"]
    assert not [name for name in report["asked"] if name.startswith("encoder.")]
    assert len(set(report["asked"])) == len(report["asked"])


def test_kept_weights_are_out_on_loan_during_a_decode_alone(report: dict) -> None:
    assert 0 < report["kept"] < len(report["asked"])
    assert report["open"] == [0, report["kept"], 0], "after a decode, in one that is interrupted, after that"


def test_what_streaming_would_free_counts_as_free(report: dict) -> None:
    """As for the host's own decode: a streamed network fills a GPU, and tiles for what it leaves would be no remedy."""
    alone = dict.fromkeys(("none", "not streamed", "older", "itself", "elsewhere", "gone"), 5)
    assert report["free"] == alone | {"streamed": 10, "budget": int(BUDGET_SHARE * 1000)}


@pytest.fixture(scope="module")
def on_a_gpu(checkout: Path, host_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Decodes of three latents, the last as the first: differences to the host's own, hashes, and what it logged."""
    base = tmp_path_factory.mktemp("lent")
    (base / "models" / "vae").mkdir(parents=True)
    save_file(random_vae.tensors(96), base / "models" / "vae" / models.VAE)
    (base / "frontend").mkdir()
    differences, hashes = [], []
    with ComfyProcess(
        checkout, host_python, base, flags=("--front-end-root", str(base / "frontend")), device="cuda"
    ) as host:
        client = ComfyClient(host.url)
        for seed in (1, 2, 1):
            graph = TinyGraph()
            latent = graph.add("TestLatent", seed=seed, channels=16, frames=3, height=30, width=52, batch=1)
            ours = graph.add("TurboVAEDecode", samples=latent, vae=graph.vae())
            stock = graph.add("VAEDecode", samples=latent, vae=graph.vae())
            comparison = graph.add("TestCompareImages", a=ours, b=stock)[0]
            probe = graph.add("TestImageProbe", image=ours)[0]
            run = finished(client, graph)
            differences.append(run.report(comparison)["relative"])
            hashes.append(run.report(probe)["sha256"])
        return {"differences": differences, "hashes": hashes, "log": host.log()}


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_weights_that_stayed_on_a_gpu_are_the_same(on_a_gpu: dict) -> None:
    first, other, again = on_a_gpu["hashes"]
    assert first == again != other
    assert max(on_a_gpu["differences"]) < DECODES_BF16


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_lent_weights_bring_no_warnings(on_a_gpu: dict) -> None:
    """comfy-aimdo warns of each page that is in use where its own count of free memory is asked for."""
    assert "pin_count" not in on_a_gpu["log"]
