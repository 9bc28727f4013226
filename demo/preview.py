"""A look at a model in training: clips of trained and of held-out captions, scored by the detector, and a picture."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from turbowan.demo import dataset
from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.detector import detect
from turbowan.demo.pictures import Shown, contact_sheet
from turbowan.demo.vae_network import decode
from turbowan.demo.vocabulary import HELD_OUT, TRAINED, Triple, caption, draw_triples
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae import LATENT_CHANNELS, WanVAE, denormalize, latent_size

CLIPS_AT_ONCE = 8
COLUMNS = 9  # frames of a clip in the picture
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Request:
    """Clips to be made.

    Attributes:
        states: text states [N, rows, D].
        noise: standard normal [N, 16, T, H, W].
        condition: what an I2V model reads beside it, of a first frame with the caption's object.
    """

    triples: Sequence[Triple]
    states: Tensor
    noise: Tensor
    condition: Tensor | None


def mixed(count: int, seed: int = 7) -> list[Triple]:
    """Triples, half of them held out."""
    generator = torch.Generator().manual_seed(seed)
    return [*draw_triples(count // 2, generator, TRAINED), *draw_triples(count - count // 2, generator, HELD_OUT)]


def request(
    vae: WanVAE,
    encoder: TextEncoder,
    triples: Sequence[Triple],
    *,
    side: int,
    frames: int,
    images: bool,
    device: torch.device,
    seed: int = 7,
) -> Request:
    generator = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(triples, frames=frames, height=side, width=side, generator=generator)
    size = latent_size(frames, side, side)
    noise = torch.randn(len(triples), LATENT_CHANNELS, *size, generator=generator).to(device)
    condition = None
    if images:
        found = []
        first = replace(scenes, centre=scenes.centre[:, :1], angle=scenes.angle[:, :1])
        starts = draw(first, height=side, width=side, device=device)
        for start in starts.split(CLIPS_AT_ONCE):
            grey = torch.zeros(1, 1, frames - 1, 1, 1, device=device).expand(len(start), 3, -1, side, side)
            found.append(dataset.to_latents(vae, torch.cat((start, grey), dim=2)))
        condition = dataset.image_condition(torch.cat(found))
    states = dataset.text_states(encoder, [caption(triple) for triple in triples], device)
    return Request(triples=triples, states=states, noise=noise, condition=condition)


@torch.no_grad()
def score(name: str, request: Request, latents: Tensor, vae: WanVAE, picture: Path | None) -> dict[str, float]:
    """Say what share of the clips is right, of trained and of held-out triples."""
    dtype = torch.bfloat16 if latents.is_cuda else torch.float32
    findings, shown = [], []
    for some in latents.split(CLIPS_AT_ONCE):
        clips = decode(vae, denormalize(some).to(dtype)).float().clamp(-1, 1)
        findings += detect(clips)
        triples = request.triples[len(shown) :]
        if picture is not None:
            shown += [Shown(caption=caption(t), clip=clip.cpu()) for t, clip in zip(triples, clips, strict=False)]
    parts = {}
    for part, among in (("trained", TRAINED), ("held out", HELD_OUT)):
        pairs = [pair for pair in zip(request.triples, findings, strict=True) if pair[0] in among]
        if not pairs:
            continue
        right = sum(finding.confirms(triple) for triple, finding in pairs)
        of_kind = {
            kind: sum(getattr(finding, kind) == getattr(triple, kind) for triple, finding in pairs)
            for kind in Triple._fields
        }
        told = ", ".join(f"{kind} {count}" for kind, count in of_kind.items())
        wrong = Counter(triple.motion for triple, finding in pairs if not finding.confirms(triple))
        told += "".join(f"; {motion}: {count} wrong" for motion, count in wrong.most_common())
        print(f"{name}, {part}: {right} of {len(pairs)} right ({told})", file=sys.stderr, flush=True)
        parts[part] = right / len(pairs)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet([*shown[: SHOWN // 2], *shown[-SHOWN // 2 :]], COLUMNS).save(picture)
    return parts
