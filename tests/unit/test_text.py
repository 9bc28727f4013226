"""The embedded prompt, shared by the blocks of a forward."""

import torch

from turbowan.turbo_core.text import EmbeddedText

CODES = torch.int8


def padded(generator: torch.Generator) -> torch.Tensor:
    """Ten tokens of a prompt, then six of padding."""
    states = torch.randn(1, 16, 128, generator=generator)
    states[:, 10:] = states[:, 10:11]
    return states


def test_what_all_blocks_need_is_made_once(generator):
    text = EmbeddedText(padded(generator))
    assert text.quantized(1) is text.quantized(1)
    assert text.rows(CODES) is text.rows(CODES)
    assert text.repeats is text.repeats
    assert text.repeats.tolist() == [6]


def test_states_that_were_changed_in_place_are_read_again(generator):
    """A patch of a block may write to txt; the blocks behind it must see that."""
    states = padded(generator)
    text = EmbeddedText(states, tokens=states.clone())
    before = text.quantized(1), text.rows(CODES), text.repeats
    states[:, 12:] = torch.randn(1, 4, 128, generator=generator)
    text.forget()
    fresh = EmbeddedText(states)
    assert torch.equal(text.quantized(1).codes, fresh.quantized(1).codes)
    assert torch.equal(text.rows(CODES).codes, fresh.rows(CODES).codes)
    assert not torch.equal(text.quantized(1).codes, before[0].codes)
    assert not torch.equal(text.rows(CODES).codes, before[1].codes)
    assert text.repeats.tolist() == [1]
