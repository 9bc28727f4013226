"""API-format graphs: a small builder, and shrinking a shipped workflow to a size that a CPU runs."""

from __future__ import annotations

import copy
import zlib
from typing import Any

Prompt = dict[str, dict[str, Any]]
Link = list[Any]

FILE_INPUTS = {
    ("TurboLoader", "file"),
    ("VAELoader", "vae_name"),
    ("UNETLoader", "unet_name"),
    ("LoadImage", "image"),
}
SIZE_INPUTS = {"width", "height", "length", "resolution"}
TEXT_LOADER, TEXT_ENCODER = "CLIPLoader", "CLIPTextEncode"


class Graph:
    """Builds a prompt: ``graph.add("KSampler", model=loader)`` gives the link to the node's first output."""

    def __init__(self) -> None:
        self.prompt: Prompt = {}

    def add(self, class_type: str, **inputs: Any) -> Link:
        """``inputs`` whose names need a dot are given as ``a__b``."""
        node = str(len(self.prompt) + 1)
        named = {name.replace("__", "."): value for name, value in inputs.items()}
        self.prompt[node] = {"class_type": class_type, "inputs": named}
        return [node, 0]


def output(link: Link, index: int) -> Link:
    """Another output of the node behind ``link``."""
    return [link[0], index]


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    return [node for node, data in prompt.items() if data["class_type"] == class_type]


def shrink_workflow(workflow: Prompt, *, files: dict[str, str], sizes: dict[str, Any]) -> Prompt:
    """The workflow with other file names, sizes and text encoder, and nothing else changed (asserted).

    ``files`` maps shipped names to test files, ``sizes`` input names to values. CLIPLoader goes; each
    CLIPTextEncode becomes a TestConditioning whose seed is the text's checksum.
    """
    small: Prompt = {}
    for node, data in copy.deepcopy(workflow).items():
        if data["class_type"] == TEXT_LOADER:
            continue
        if data["class_type"] == TEXT_ENCODER:
            small[node] = _conditioning(data)
            continue
        for name, value in data["inputs"].items():
            if (data["class_type"], name) in FILE_INPUTS:
                data["inputs"][name] = files[value]
            elif name in sizes and not isinstance(value, list):
                data["inputs"][name] = sizes[name]
        small[node] = data
    assert_only_shrunk(workflow, small)
    return small


def _conditioning(encoder: dict[str, Any]) -> dict[str, Any]:
    seed = zlib.crc32(encoder["inputs"]["text"].encode())
    inputs = {"seed": seed, "tokens": 512, "width": 4096, "batch": 1, "words": 40, "fault": "none"}
    return {**encoder, "class_type": "TestConditioning", "inputs": inputs}


def assert_only_shrunk(workflow: Prompt, small: Prompt) -> None:
    """Every difference between the two must be a file name, a size or the text encoder pair."""
    for node in workflow.keys() - small.keys():
        assert workflow[node]["class_type"] == TEXT_LOADER, f"node {node} must stay"
    assert small.keys() <= workflow.keys(), "no node may be added"
    for node, data in small.items():
        before = workflow[node]
        if before["class_type"] == TEXT_ENCODER:
            assert data["class_type"] == "TestConditioning", f"node {node} must be a conditioning"
            continue
        assert data["class_type"] == before["class_type"], f"node {node} must keep its class"
        assert data["inputs"].keys() == before["inputs"].keys(), f"node {node} must keep its inputs"
        for name, value in data["inputs"].items():
            allowed = (before["class_type"], name) in FILE_INPUTS or name in SIZE_INPUTS
            assert allowed or value == before["inputs"][name], f"{node}.{name} must stay {before['inputs'][name]!r}"
