"""What the demo's clips may show, and how it is said: a colour, a shape and a motion make a triple.

A ball that spins in place cannot be told from one that rests, so that triple does not exist: 6·5·7 - 6 = 204 are left.
Held out of all training are those with

    motion = (colour + 2·shape) mod 7          (numbers in the order below)

30 of them, 15 %: one motion for each pair of colour and shape, so that every value and nearly every pair of values
stays frequent in training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

COLOURS = {  # RGB in [0, 1]; hues at least 49 degrees apart
    "red": (0.90, 0.12, 0.12),
    "yellow": (0.96, 0.84, 0.10),
    "green": (0.13, 0.72, 0.16),
    "cyan": (0.10, 0.82, 0.84),
    "blue": (0.12, 0.28, 0.92),
    "purple": (0.66, 0.16, 0.88),
}
SHAPES = ("ball", "square", "triangle", "star", "cross")
MOTIONS = {  # the phrases that tell of each; the first is the one that `caption` takes without a generator
    "left": ("moving to the left", "moving left", "sliding to the left", "that moves to the left"),
    "right": ("moving to the right", "moving right", "sliding to the right", "that moves to the right"),
    "up": ("moving up", "rising", "moving upwards", "that moves up"),
    "down": ("moving down", "falling", "moving downwards", "that moves down"),
    "bounce left": ("bouncing to the left", "bouncing left", "that bounces to the left", "hopping to the left"),
    "bounce right": ("bouncing to the right", "bouncing right", "that bounces to the right", "hopping to the right"),
    "spin": ("spinning in place", "spinning", "rotating in place", "that spins in place"),
}
BACKGROUNDS = {  # RGB in [0, 1], of little colour
    "black": (0.06, 0.06, 0.06),
    "white": (0.93, 0.93, 0.93),
    "grey": (0.45, 0.45, 0.47),
    "beige": (0.84, 0.80, 0.73),
    "dark blue": (0.07, 0.08, 0.17),
}


class Triple(NamedTuple):
    colour: str
    shape: str
    motion: str


def _is_held_out(colour: int, shape: int, motion: int) -> bool:
    return motion == (colour + 2 * shape) % len(MOTIONS)


def _triples(held_out: bool) -> tuple[Triple, ...]:
    return tuple(
        Triple(colour, shape, motion)
        for c, colour in enumerate(COLOURS)
        for s, shape in enumerate(SHAPES)
        for m, motion in enumerate(MOTIONS)
        if _is_held_out(c, s, m) == held_out and (shape, motion) != ("ball", "spin")
    )


TRAINED = _triples(held_out=False)
HELD_OUT = _triples(held_out=True)
LESSONS = TRAINED + 5 * tuple(triple for triple in TRAINED if triple.motion == "spin")
"""What the transformer is trained on: a shape that turns looks new in every frame, so nearly half of them spin."""


def draw_triples(count: int, generator: torch.Generator, among: tuple[Triple, ...] = TRAINED) -> list[Triple]:
    """``count`` triples, each equally likely."""
    return [among[i] for i in torch.randint(len(among), (count,), generator=generator).tolist()]


def caption(triple: Triple, background: str | None = None, generator: torch.Generator | None = None) -> str:
    """What a clip of the triple shows, in plain words; with a generator in one of several wordings.

    The background is told where it is given; with a generator in half of the captions.
    """
    colour, shape, motion = triple
    phrase, article, told = 0, "a ", background is not None
    if generator is not None:
        phrase, article_number, mention = (
            torch.randint(high, (1,), generator=generator).item() for high in (len(MOTIONS[motion]), 3, 2)
        )
        article = ("a ", "A ", "")[article_number]
        told = told and mention == 1
    place = f" on a {background} background" if told else ""
    return f"{article}{colour} {shape} {MOTIONS[motion][phrase]}{place}"
