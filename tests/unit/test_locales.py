"""Translations: every language has every entry, and nothing that the frontend's formatter would take apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import turbowan

ROOT = Path(turbowan.__file__).parent
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir() if path.is_dir())
SPECIAL = set("{}@|$")  # vue-i18n's interpolation, links and plurals


def read(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    else:
        yield path, value


ENGLISH = dict(leaves(read("en")))


def test_languages() -> None:
    assert LANGUAGES == ["en", "zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_entry_lacks_or_is_left_over(language: str) -> None:
    found = dict(leaves(read(language)))
    assert found.keys() == ENGLISH.keys()
    for path, text in found.items():
        assert text.strip(), path
        assert not SPECIAL & set(text), path


def test_chinese_is_chinese_and_keeps_the_numbers() -> None:
    for path, text in leaves(read("zh")):
        if path[-1] != "name":
            assert re.search(r"[\u4e00-\u9fff]", text), path
        if path[-1] == "tooltip":
            assert sorted(re.findall(r"\d+", text)) == sorted(re.findall(r"\d+", ENGLISH[path])), path


@pytest.mark.parametrize("node", read("en"))
def test_every_node_has_its_help_in_both_languages(node: str) -> None:
    """With as many table rows, so that no input and no error is forgotten."""
    docs = ROOT / "web" / "docs"
    english, chinese = docs / f"{node}.md", docs / node / "zh.md"
    rows = [
        sum(line.startswith("|") for line in page.read_text(encoding="utf-8").splitlines())
        for page in (english, chinese)
    ]
    assert rows[0] == rows[1]
    for name in read("en")[node]["inputs"]:
        for page in (english, chinese):
            assert re.search(rf"\b{name}\b", page.read_text(encoding="utf-8")), f"{page} lacks {name}"
