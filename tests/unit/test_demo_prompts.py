"""The demo model's prompts: its workflow asks for one of them, and its book holds what its text encoder says."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import turbowan
from turbowan.demo.vocabulary import HELD_OUT, TRAINED, caption
from turbowan.turbo_core import demo_bundle
from turbowan.turbo_core.prompt_book import open_book
from turbowan.turbo_core.text_encoder import TextEncoder

ROOT = Path(turbowan.__file__).parent
PROMPTS = (ROOT / "demo" / "prompts.txt").read_text(encoding="utf-8").splitlines()
BOOK, ENCODER = (demo_bundle.FOLDER / name for name in (demo_bundle.PROMPTS, demo_bundle.TEXT_ENCODER))


def test_every_triple_has_its_prompt() -> None:
    """Those that the demo model was not trained on as well."""
    assert len(set(PROMPTS)) == len(PROMPTS)
    assert set(PROMPTS) == {caption(triple) for triple in (*TRAINED, *HELD_OUT)}


def test_the_workflow_asks_for_one_of_them() -> None:
    graph = json.loads((ROOT / "workflows" / "api" / "TurboWan_Demo.json").read_text())
    (text,) = (node["inputs"]["text"] for node in graph.values() if node["class_type"] == "TurboPromptCache")
    assert text in PROMPTS


def test_the_book_holds_what_the_encoder_says() -> None:
    """`turbowan prompts`, from demo/prompts.txt and the bundle's encoder, writes it."""
    book = open_book(BOOK)
    assert book.texts == PROMPTS
    some = PROMPTS[::40]
    states = TextEncoder.open(ENCODER).encode(some, torch.device("cpu"))
    for prompt, expected in zip(some, states, strict=True):
        ((kept, extras),) = book.get(prompt)
        torch.testing.assert_close(kept, expected)
        assert extras == {"pooled_output": None}
