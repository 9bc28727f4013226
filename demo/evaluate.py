"""How often a video shows what its prompt says: held-out triples through `turbo_core.pipeline`, scored by the detector.

    python -m turbowan.demo.evaluate                                the text-to-video model, 200 videos at 4 steps
    python -m turbowan.demo.evaluate --i2v --steps 4,2              the pair; each starts from a drawn first frame

A triple comes with a seed of its own each time; right is a video whose colour, shape and motion all are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbowan.demo.dataset import FRAMES
from turbowan.demo.detector import detect
from turbowan.demo.first_frame import first_frame
from turbowan.demo.pictures import Shown, contact_sheet
from turbowan.demo.vocabulary import HELD_OUT, TRAINED, Triple, caption
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline, Request

SIDE = 160
SHOWN = 10  # videos in the picture
COLUMNS = 9
WRONG_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one model and number of steps, how many videos were right, and in which respects."""

    model: str
    steps: int
    videos: int
    right: int
    colour: int
    shape: int
    motion: int
    seconds: float
    """To sample and to decode all of them."""


def files(bundle: Path, *, i2v: bool) -> ModelFiles:
    """The bundle's files, by their names."""
    vae, text_encoder = bundle / demo_bundle.VAE, bundle / demo_bundle.TEXT_ENCODER
    if i2v:
        high, low = bundle / demo_bundle.I2V_HIGH, bundle / demo_bundle.I2V_LOW
        return ModelFiles(network=high, low=low, vae=vae, text_encoder=text_encoder)
    return ModelFiles(network=bundle / demo_bundle.T2V, vae=vae, text_encoder=text_encoder)


def evaluate(
    pipeline: Pipeline,
    triples: list[Triple],
    steps: int,
    *,
    side: int = SIDE,
    frames: int = FRAMES,
    picture: Path | None = None,
) -> Score:
    """A video of each triple, seeded by its number."""
    texts = [caption(triple) for triple in triples]
    encoded = dict(zip(sorted(set(texts)), pipeline.encode(sorted(set(texts))), strict=True))
    right, wrong, shown = Counter[str](), [], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for seed, (triple, text) in enumerate(zip(triples, texts, strict=True)):
            image = None
            if pipeline.family == "i2v":
                image = Path(folder) / f"{seed}.png"
                first_frame(triple, seed, frames=frames, height=side, width=side).save(image)
            request = Request(prompt=text, size=(side, side), frames=frames, seed=seed, steps=steps, image=image)
            video = _video(pipeline, request, encoded[text])
            finding = detect(video[None])[0]
            right["all"] += finding.confirms(triple)
            for kind in Triple._fields:
                right[kind] += getattr(finding, kind) == getattr(triple, kind)
            if not finding.confirms(triple):
                wrong.append(f"seed {seed}: {text} seen as {finding.colour}, {finding.shape}, {finding.motion}")
            if len(shown) < SHOWN:
                shown.append(Shown(caption=text, clip=video.cpu()))
    for line in wrong[:WRONG_TOLD]:
        print("  wrong:", line)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(shown, COLUMNS).save(picture)
    return Score(
        model=pipeline.files.network.name,
        steps=steps,
        videos=len(triples),
        right=right["all"],
        colour=right["colour"],
        shape=right["shape"],
        motion=right["motion"],
        seconds=round(time.monotonic() - began, 1),
    )


def _video(pipeline: Pipeline, request: Request, text: Tensor) -> Tensor:
    """[3, T, H, W] in [-1, 1], of the 8-bit frames that a user gets."""
    pieces: list[Tensor] = []
    pipeline.generate(request, text, pieces.append)
    return torch.cat(pieces, dim=1).to(pipeline.device).mul(255).round() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=demo_bundle.FOLDER, help="folder with the model's files")
    parser.add_argument("--i2v", action="store_true", help="the image-to-video pair")
    parser.add_argument("--steps", default="4,2,1", help="numbers of steps")
    parser.add_argument("--videos", type=int, default=200, help="of each number of steps")
    parser.add_argument("--trained", action="store_true", help="of triples that were trained instead of held out")
    parser.add_argument("--side", type=int, default=SIDE, help="of the videos, in pixels")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--topk", type=float, default=0.1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of the first videos")
    parser.add_argument("--json", type=Path, help="file for the scores")
    given = parser.parse_args()
    settings = NetworkSettings(attention=given.attention, topk=given.topk, precision=given.precision)
    pipeline = Pipeline(files(given.bundle, i2v=given.i2v), settings, torch.device(given.device))
    among = TRAINED if given.trained else HELD_OUT
    triples = [among[i % len(among)] for i in range(given.videos)]
    scores = []
    for steps in map(int, given.steps.split(",")):
        picture = None if given.pictures is None else given.pictures / f"{pipeline.family}_{steps}_steps.png"
        score = evaluate(pipeline, triples, steps, side=given.side, picture=picture)
        print(
            f"{score.model}, {steps} steps: {score.right} of {score.videos} right "
            f"(colour {score.colour}, shape {score.shape}, motion {score.motion}), {score.seconds} s",
            flush=True,
        )
        scores.append(asdict(score))
    if given.json is not None:
        given.json.write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
