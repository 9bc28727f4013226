"""The demo's clips, captions and detector."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.detector import Finding, detect
from turbowan.demo.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    TRAINED,
    Triple,
    caption,
    draw_triples,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def clips_of(triples, generator, frames=17, height=64, width=64):
    scenes = draw_scenes(triples, frames=frames, height=height, width=width, generator=generator)
    return draw(scenes, height=height, width=width)


def test_a_seventh_of_the_triples_is_held_out_and_every_value_stays_in_training():
    assert not set(TRAINED) & set(HELD_OUT)
    assert len(TRAINED) + len(HELD_OUT) == len(COLOURS) * len(SHAPES) * len(MOTIONS) - len(COLOURS)
    assert 0.14 < len(HELD_OUT) / (len(TRAINED) + len(HELD_OUT)) < 0.16
    for part, values in enumerate((COLOURS, SHAPES, MOTIONS)):
        trained, held_out = (Counter(triple[part] for triple in triples) for triples in (TRAINED, HELD_OUT))
        assert min(trained[value] for value in values) >= 20
        assert min(held_out[value] for value in values) >= 4


def test_a_seed_gives_the_same_clips_and_another_seed_others():
    first, again, other = (
        clips_of(draw_triples(3, g), g) for g in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [(1, 64, 64), (81, 48, 64), (33, 80, 48)], ids=str)
def test_shapes_stay_inside_the_frame(generator, size):
    clips = clips_of(list(TRAINED[::4]), generator, *size)
    assert clips.shape == (len(TRAINED[::4]), 3, *size)
    assert clips.abs().max() <= 1
    chroma = clips.amax(1) - clips.amin(1)
    edges = torch.cat([chroma[..., 0, :], chroma[..., -1, :], chroma[..., 0], chroma[..., -1]], -1)
    assert chroma.amax((-2, -1)).min() > 1  # every frame shows the shape, in full colour
    assert edges.max() < 0.3


def test_captions_name_the_triple_in_several_wordings(generator):
    for triple in (TRAINED + HELD_OUT)[::7]:
        told = {caption(triple, "beige", generator) for _ in range(60)}
        assert len(told) > 12
        assert {" on a beige background" in words for words in told} == {True, False}
        for words in told:
            assert f"{triple.colour} {triple.shape} " in words
            assert any(phrase in words for phrase in MOTIONS[triple.motion])
    assert caption(Triple("red", "ball", "bounce right")) == "a red ball bouncing to the right"


def test_no_phrase_is_part_of_another_motions_phrase():
    for motion, phrases in MOTIONS.items():
        others = [phrase for other, said in MOTIONS.items() if other != motion for phrase in said]
        assert not any(phrase in other for phrase in phrases for other in others)


def blurred(clips, sigma):
    taps = torch.exp(-(torch.arange(-4.0, 5) ** 2) / (2 * sigma**2))
    kernel = torch.outer(taps, taps)[None, None, None] / taps.sum() ** 2
    return F.conv3d(F.pad(clips.flatten(0, 1)[:, None], (4, 4, 4, 4, 0, 0), "replicate"), kernel).view_as(clips)


@pytest.mark.parametrize("sigma", [0, 1.2])
def test_the_detector_knows_what_a_clip_shows(generator, sigma):
    triples = [
        Triple(tuple(COLOURS)[i % len(COLOURS)], SHAPES[(i + i // 7) % len(SHAPES)], motion)
        for i, motion in enumerate(tuple(MOTIONS) * 2)
    ]
    triples = [triple for triple in triples if triple in TRAINED + HELD_OUT]
    clips = clips_of(triples, generator, 33, 96, 96)
    if sigma:
        clips = blurred(clips, sigma) + 0.03 * torch.randn(clips.shape, generator=generator)
    wrong = [(t, f) for t, f in zip(triples, detect(clips), strict=True) if not f.confirms(t)]
    assert not wrong


SHOWN = Triple("green", "star", "right")


@pytest.fixture
def clip(generator):
    clip = clips_of([SHOWN], generator, 33, 96, 96)
    assert detect(clip)[0].confirms(SHOWN)
    return clip


def test_the_detector_tells_one_value_from_another(clip):
    (found,) = detect(clip)
    others = [
        SHOWN._replace(**{part: value})
        for part, values in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS))
        for value in values
    ]
    assert [found.confirms(other) for other in others].count(True) == 3  # SHOWN itself, once a part


def test_a_clip_that_is_changed_is_found_out(clip, generator):
    (backwards,) = detect(clip.flip(2))
    assert backwards == Finding(colour="green", shape="star", motion="left")
    (mirrored,) = detect(clip.flip(3))
    assert mirrored.motion == "right"
    (turned,) = detect(clip.mT)
    assert turned.motion == "down"
    (recoloured,) = detect(clip[:, [2, 0, 1]])
    assert recoloured.colour == "blue"
    (halted,) = detect(clip[:, :, :1].expand_as(clip))
    assert halted == Finding(colour="green", shape="star", motion=None)


def test_what_is_no_clip_of_one_shape_has_no_motion(clip, generator):
    other = clips_of([SHOWN._replace(shape="ball", motion="left")], generator, 33, 96, 96)
    noise = torch.rand(clip.shape, generator=generator) * 2 - 1
    grounds = torch.tensor([BACKGROUNDS[name] for name in BACKGROUNDS]) * 2 - 1
    for nothing in (
        torch.cat([clip[:, :, :16], other[:, :, 16:]], 2),
        torch.cat([clip[:, :, :16], clip[:, :, :1].mean().expand_as(clip)[:, :, 16:]], 2),
        noise,
        torch.zeros_like(clip),
        *grounds[:, None, :, None, None, None].expand(-1, *clip.shape),
    ):
        assert detect(nothing)[0].motion is None


def test_a_shape_that_is_none_of_them_is_none(generator):
    y, x = torch.meshgrid(torch.arange(96.0) - 48, torch.arange(96.0) - 48, indexing="ij")
    bar = ((x.abs() < 30) & (y.abs() < 7)).float()
    red = torch.tensor([0.8, -0.8, -0.8]).view(1, 3, 1, 1, 1)
    frame = torch.lerp(torch.full((1, 3, 1, 96, 96), -0.9), red.expand(1, 3, 1, 96, 96), bar)
    clip = torch.cat([frame.roll(step, -1) for step in range(-10, 11)], 2)
    assert detect(clip)[0] == Finding(colour="red", shape=None, motion=None)
