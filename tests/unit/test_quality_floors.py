"""Floors for the defaults on the demo model's trained weights: what videos show, what arithmetic and sparsity cost.

The figures come from docs/bench/quality_*.json and docs/facts.md, with room below; no change of the code may fall under
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from turbowan.benchmarks.quality_bench import Bench, psnr
from turbowan.benchmarks.quality_options import DEFAULT, IMAGE_DEFAULT, Option
from turbowan.turbo_core import demo_bundle

SIZE = (160, 160, 81)
VIDEOS = {DEFAULT: 4, IMAGE_DEFAULT: 2}
# Of the first videos on an H200, less 3 dB and one video; a CPU's are no lower. What is measured on one video is that
# video made alone: among others, as in the JSON, it rounds elsewhere.
LEAST_RIGHT = {DEFAULT: 3, IMAGE_DEFAULT: 1}
LEAST_FULL_DB = 17.6
LEAST_NUMERIC_DB = {"int8": 46.5, "exact": 20.6, "bf16": 51.1, "channelwise": 41.3}
LEAST_SAGESLA_DB = 41.9

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    made = Bench(demo_bundle.FOLDER, tmp_path_factory.mktemp("bench"), device, SIZE)
    made.prepare(range(max(VIDEOS.values())))
    yield made
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("default", VIDEOS, ids=("text", "image"))
def test_videos_of_held_out_captions_are_right(bench: Bench, default: Option) -> None:
    assert bench.refusal(default) is None
    videos = bench.measure(default, range(VIDEOS[default]), compare=False)
    assert sum(video.right for video in videos) >= LEAST_RIGHT[default], videos


def test_sparse_attention_is_near_full_attention(bench: Bench) -> None:
    (decibels,) = psnr(bench.frames(DEFAULT, [0]), bench.full(DEFAULT, [0]))
    assert decibels > LEAST_FULL_DB


def test_the_published_arithmetic_is_near_fp32(bench: Bench) -> None:
    """On a CPU too, where the default's products are fp32 themselves."""
    (video,) = bench.measure(dataclasses.replace(DEFAULT, precision="exact"), [0], compare=True)
    assert video.numeric_db > LEAST_NUMERIC_DB["exact"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["int8", "bf16", "channelwise"])
def test_every_precision_is_near_fp32(bench: Bench, precision: str) -> None:
    (video,) = bench.measure(dataclasses.replace(DEFAULT, precision=precision), [0], compare=True)
    assert video.numeric_db > LEAST_NUMERIC_DB[precision]


@pytest.mark.gpu
def test_int8_scores_are_near_fp32(bench: Bench) -> None:
    (video,) = bench.measure(dataclasses.replace(DEFAULT, attention="sagesla"), [0], compare=True)
    assert video.numeric_db > LEAST_SAGESLA_DB
