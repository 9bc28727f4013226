"""The finished files of the demo: what they are, and that what comes back from the VAE is what went in."""

import pytest
import torch
from safetensors.torch import load_file, safe_open

from turbowan.demo.check_vae import round_trips
from turbowan.demo.vocabulary import Triple
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.vae_weights import from_tensors

VAE = demo_bundle.FOLDER / demo_bundle.VAE
SHOWN = {  # and frames: a bounce takes up to 26
    Triple("red", "ball", "bounce right"): 33,
    Triple("cyan", "star", "up"): 17,
    Triple("blue", "cross", "spin"): 17,
    Triple("yellow", "triangle", "left"): 17,
}
LEAST_DB = 30.0
LEAST_GREY_DB = 38.0

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_bundle_is_small_and_cc0():
    assert sum(path.stat().st_size for path in demo_bundle.FOLDER.rglob("*") if path.is_file()) <= 20e6
    with safe_open(VAE, "pt") as file:
        assert file.metadata()["license"] == "CC0-1.0"


@pytest.mark.parametrize("triple", SHOWN, ids=str)
def test_a_round_trip_shows_the_same(triple, generator):
    vae = from_tensors(load_file(VAE), dtype=torch.float32)
    (trip,) = round_trips(vae, (triple,), frames=SHOWN[triple], side=96, generator=generator)
    assert trip.decibels > LEAST_DB
    assert trip.decibels_grey > LEAST_GREY_DB
    assert trip.seen() is None
    assert trip.latent.abs().mean() < 1.5
