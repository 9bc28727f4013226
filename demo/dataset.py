"""What the transformer is trained on: clips as latents, captions as text states, made once and kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.differentiable import Prompts
from turbowan.demo.vae_network import encode
from turbowan.demo.vocabulary import LESSONS, Triple, caption, draw_triples
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.vae import WanVAE, normalize

FRAMES = 81
WORDINGS = 4  # captions of a clip
ROWS = 16  # of text states that are kept: the longest caption has 14 tokens, the last row has to be padding
CLIPS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Normalized latents [N, 16, T, H, W] in bf16 and text states [N, WORDINGS, ROWS, D].

    Attributes:
        images: for image to video, the latents of the first frame followed by grey ones; of the first clips.
        nothing: states [ROWS, D] of the empty prompt.
    """

    triples: Sequence[Triple]
    latents: Tensor
    states: Tensor
    nothing: Tensor
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)


def make(
    vae: WanVAE,
    encoder: TextEncoder,
    count: int,
    *,
    side: int,
    generator: torch.Generator,
    device: torch.device,
    frames: int = FRAMES,
    images: int = 0,
) -> Dataset:
    """Draw clips of `LESSONS`, encode them and their captions; the first `images` ones also as image to video."""
    triples = draw_triples(count, generator, LESSONS)
    latents, of_images, grounds = [], [], []
    for start in range(0, count, CLIPS_AT_ONCE):
        some = triples[start : start + CLIPS_AT_ONCE]
        scenes = draw_scenes(some, frames=frames, height=side, width=side, generator=generator)
        clips = draw(scenes, height=side, width=side, device=device)
        grounds += scenes.backgrounds
        latents.append(to_latents(vae, clips))
        if start < images:
            clips = clips[: images - start].clone()
            clips[:, :, 1:] = 0
            of_images.append(to_latents(vae, clips))
    captions = [
        caption(triple, ground, generator)
        for triple, ground in zip(triples, grounds, strict=True)
        for _ in range(WORDINGS)
    ]
    states = text_states(encoder, ["", *captions], device)
    return Dataset(
        triples=triples,
        latents=torch.cat(latents),
        states=states[1:].unflatten(0, (count, WORDINGS)),
        nothing=states[0],
        images=torch.cat(of_images) if images else None,
    )


@torch.no_grad()
def to_latents(vae: WanVAE, clips: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] in [-1, 1] to normalized latents in bf16; computed in bf16 on a GPU."""
    dtype = torch.bfloat16 if clips.is_cuda else torch.float32
    mean, _ = encode(vae, clips.to(dtype))
    return normalize(mean).to(torch.bfloat16)


def text_states(encoder: TextEncoder, captions: Sequence[str], device: torch.device) -> Tensor:
    """[len(captions), ROWS, D] in fp32: each caption's own tokens, then zeros.

    Raises:
        ValueError: for a caption that leaves no row of padding.
    """
    unique = sorted(set(captions))
    longest = max(unique, key=lambda text: len(encoder.tokens(text)))
    if len(encoder.tokens(longest)) >= ROWS:
        raise ValueError(
            f"text states: a caption must have less than {ROWS} tokens, {longest!r} has "
            f"{len(encoder.tokens(longest))}; shorten it or raise ROWS"
        )
    found: dict[str, Tensor] = {}
    for start in range(0, len(unique), 1000):
        some = unique[start : start + 1000]
        for text, states in zip(some, encoder.encode(some, device), strict=True):
            found[text] = states[0, :ROWS].clone()
    return torch.stack([found[text] for text in captions]).to(device)


@dataclass(frozen=True)
class Drawn:
    """A training batch: clean latents, prompts, and what an I2V model reads beside the noise."""

    latents: Tensor
    prompts: Prompts
    condition: Tensor | None


def draw_batch(
    data: Dataset, count: int, generator: torch.Generator, *, nothing: float, images: float | None = None
) -> Drawn:
    """Clips with one of their captions each, or with the empty one for a share of `nothing`.

    Args:
        images: share of the clips that have an image as condition; the others get zeros, mask included. None: no
            condition at all.
    """
    rolls = torch.rand(2, count, generator=generator)
    index = torch.randint(len(data), (count,), generator=generator)
    with_image = 0 if images is None else round(images * count)
    if with_image:
        index[:with_image] = torch.randint(len(data.images), (with_image,), generator=generator)
    index = index.to(data.latents.device)
    wording = (rolls[0] * data.states.shape[1]).long().to(index.device)
    states = data.states[index, wording]
    empty = (rolls[1] < nothing).to(index.device)
    states = torch.where(empty[:, None, None], data.nothing, states)
    condition = None
    if images is not None:
        condition = image_condition(data.images[index[:with_image]])
        condition = torch.cat((condition, condition.new_zeros(count - with_image, *condition.shape[1:])))
    return Drawn(data.latents[index], Prompts(states), condition)


def image_condition(images: Tensor) -> Tensor:
    """[B, 20, T, H, W]: 4 channels of mask, 1 in the first latent frame, then the image's latents."""
    mask = images.new_zeros(images.shape[0], 4, *images.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat((mask, images), dim=1)
