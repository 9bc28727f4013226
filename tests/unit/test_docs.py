"""The documentation against the repository: links, pictures, commands, make targets, sizes, pages of the nodes."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import turbowan
from turbowan.turbo_core import cli
from turbowan.turbo_core.catalogue import RELEASES
from turbowan.turbo_core.commands.command import Command
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.native_names import expected_tensors

ROOT = Path(turbowan.__file__).parent.resolve()
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("demo/*.md"), *ROOT.glob("web/docs/**/*.md")]
)
FOR_USERS = [page for page in PAGES if page.name != "CHANGELOG.md"]
PICTURE_BYTES = {".png": 150_000, ".jpg": 150_000, ".webp": 1_000_000}  # the last may move
LINK = re.compile(r"(?:\[[^\]]*\]\(|<img src=\")([^)\s\"]+)[)\"]")
ENCODER_AND_VAE = 6.7 + 0.25  # GB, as the page of sizes says


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each turbowan command in the page's blocks of shell code."""
    for block in re.findall(r"^```(?:bash|bat)\n(.*?)^```$", text(page), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            plain = re.sub(r"\[(.*?)(?:\|\w+)?\]", r"\1", line.replace("\\", "/"))  # [--option one|other]
            words = shlex.split(plain, comments=True)
            for index, word in enumerate(words):
                program = word.rpartition("/")[2]
                if program == "turbowan" or (program == "comfyui-turbowan" and "python" in words[index - 1].lower()):
                    yield words[index + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    for link in LINK.findall(re.sub(r"<!--.*?-->", "", text(page), flags=re.S)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links {link}"
        assert not anchor or anchor in anchors(target), f"{name(page)} links {link}"


@pytest.mark.parametrize("page", FOR_USERS, ids=name)
def test_named_files_and_modules_exist(page: Path) -> None:
    """`turbo_core/rcm.py` and `python -m turbowan.demo.distil`; capitals, as in NAME, stand for any."""
    files = re.findall(r"`((?:[a-z_]+/)+[\w.]+\.(?:py|cjs|md|json|png|txt))`", text(page))
    modules = [module.replace(".", "/") + ".py" for module in re.findall(r"-m turbowan\.([\w.]*\w)", text(page))]
    for path in (path for path in (*files, *modules) if not re.search(r"\b[A-Z]{4,}", path)):
        assert any((folder / path).exists() for folder in (ROOT, page.parent)), f"{name(page)} names {path}"


def test_every_benchmark_is_in_its_page() -> None:
    page = text(ROOT / "docs" / "benchmarks.md")
    runnable = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in text(path)]
    assert [stem for stem in runnable if f"turbowan.benchmarks.{stem}" not in page] == []


def test_every_page_for_users_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text(ROOT / "README.md"))}
    assert set(ROOT.glob("docs/*.md")) <= linked


def test_pictures_are_small_and_shown() -> None:
    """The workflows' in the README, any other in some page."""
    linked = {(page.parent / link).resolve() for page in PAGES for link in LINK.findall(text(page))}
    readme = {ROOT / link for link in LINK.findall(text(ROOT / "README.md"))}
    pictures = ROOT / "docs" / "pictures"
    for picture in pictures.iterdir():
        assert picture.stat().st_size < PICTURE_BYTES.get(picture.suffix, 0), picture.name
        assert picture in linked, f"no page shows {picture.name}"
    for workflow in (ROOT / "workflows").glob("*.json"):
        picture = pictures / f"{workflow.stem}.png"
        assert picture in readme
        with Image.open(picture) as image:
            assert image.width > image.height > 100


def test_commands_in_code_blocks_exist() -> None:
    """Every shown command line is one that the parser takes."""
    shown = [(name(page), arguments) for page in FOR_USERS for arguments in commands(page)]
    assert len(shown) > 20
    for page, arguments in shown:
        try:
            cli.parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page} shows: turbowan {shlex.join(arguments)}")


def test_options_in_the_readme_s_table_exist() -> None:
    readme = text(ROOT / "README.md")
    section = readme.partition("## Command line")[2].partition("\n## ")[0]
    help_of = {command.name: help_text(command) for command in cli.COMMANDS}
    rows = re.findall(r"^\| `(\w+)[^|]*\|.*$", section, flags=re.M)
    assert set(rows) == help_of.keys()
    for row in re.findall(r"^\| `.*$", section, flags=re.M):
        command = re.match(r"\| `(\w+)", row)[1]
        for option in re.findall(r"--[\w-]+", row):
            assert re.search(rf"{option}\b", help_of[command]), f"{command} {option}"


def help_text(command: Command) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.format_help()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), flags=re.M))
    for page in FOR_USERS:
        blocks = re.findall(r"^```bash\n(.*?)^```$", text(page), flags=re.M | re.S)
        named = re.findall(r"^make ([\w-]+)", "\n".join(blocks), flags=re.M)
        assert set(named) <= targets, name(page)


def test_sizes_are_those_of_the_layouts() -> None:
    """The table in models.md, to its last digit."""
    small = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
    large = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
    shapes = {"t2v-1.3b": small, "t2v-14b-480p": large, "t2v-14b-720p": large, "i2v-a14b": large | {"in_dim": 36}}
    assert shapes.keys() == RELEASES.keys()
    rows = re.findall(
        r"^\| (`t2v.*|`i2v.*) \| ([\d.]+).* \| ([\d.]+).* \| ([\d.]+) \|$", text(ROOT / "docs/models.md"), re.M
    )
    told = {key: tuple(map(float, row[1:])) for row in rows for key in re.findall(r"`(\S+)`", row[0])}
    assert told.keys() == shapes.keys()
    for key, shape in shapes.items():
        files = len(RELEASES[key].quantized)
        quantized, unquantized = (files * gigabytes(shape, quantized=flag) for flag in (True, False))
        found = (quantized, unquantized, quantized + ENCODER_AND_VAE)
        assert told[key] == tuple(round(size, 1) for size in found), key


def gigabytes(shape: dict[str, int], *, quantized: bool) -> float:
    """What a file's tensors take: codes a byte, scales four, everything else 16 bits."""
    config = WanConfig(**shape, has_proj_l=True, quantized=quantized)
    width = {"codes": 1, "scale": 4}
    return sum(math.prod(e.shape) * width.get(e.kind, 2) for e in expected_tensors(config).values()) / 1e9


def node_ids() -> set[str]:
    """The ids that the node files declare, without importing ComfyUI."""
    calls = (
        node
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.Call)
    )
    return {
        keyword.value.value
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "node_id" and isinstance(keyword.value, ast.Constant)
    }


def test_every_node_has_its_pages_words_and_row_in_the_readme() -> None:
    nodes, readme = node_ids(), text(ROOT / "README.md")
    assert len(nodes) >= 10
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == nodes
    assert {path.parent.name for path in (ROOT / "web" / "docs").glob("*/zh.md")} == nodes
    for language in ("en", "zh"):
        assert json.loads(text(ROOT / "locales" / language / "nodeDefs.json")).keys() == nodes
    assert {node for node in nodes if f"(`{node}`)" in readme} == nodes
