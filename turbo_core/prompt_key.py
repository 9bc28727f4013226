"""The key of an encoded prompt: the text and everything that decides what encodes it.

key = SHA-256 of (text, signature of the node behind `clip`, what else decides); signature of a node = its class,
its literal inputs (the loader's type and device among them), size and time of the files they name, and the signatures
of the nodes linked to it. Node ids and titles do not count, so that the same encoder in another workflow finds the same
entries. What else decides is the host: its version, since another one may tokenize or compute otherwise, what it runs
text encoders on, and the start options for their precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]
"""``{"class_type": …, "inputs": {name: literal or [node id, output]}}``"""
Lookup = Callable[[str], Node]
"""Node id → node."""
Stamps = Callable[[str], Sequence[Any]]
"""What is known of the files that a literal may name; nothing where it names none."""

TEXT_ENCODER_OPTIONS = "text_enc"  # ends the names of those that choose their dtype
PRECISION_OPTIONS = ("fast", "force_fp16", "force_fp32", "fp16_intermediates", "supports_fp8_compute")


def prompt_key(text: str, clip: Sequence[Any], lookup: Lookup, stamps: Stamps, others: Sequence[Any] = ()) -> str:
    """`clip` is the link ``[node id, output]``; `others` are what else changes an encoding, as JSON has it."""
    signature = _signature(str(clip[0]), lookup, stamps, {})
    return _digest(["turbowan-prompt-1", text, signature, int(clip[1]), list(others)])


def host_settings(version: str, device: str, options: Mapping[str, Any]) -> list[Any]:
    """Of a ComfyUI, what decides an encoding besides the graph.

    Args:
        device: the type of the one that text encoders run on.
        options: its start options by name.
    """
    counting = {
        name: sorted(str(getattr(item, "value", item)) for item in value) if isinstance(value, set | list) else value
        for name, value in options.items()
        if value and (name.endswith(TEXT_ENCODER_OPTIONS) or name in PRECISION_OPTIONS)
    }
    return ["ComfyUI", version, device, counting]


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _signature(node_id: str, lookup: Lookup, stamps: Stamps, known: dict[str, str]) -> str:
    """One node's; `known` saves a node that feeds several others from being walked again."""
    if node_id not in known:
        node = lookup(node_id)
        inputs = [
            [name, "link", _signature(value[0], lookup, stamps, known), value[1]]
            if is_link(value)
            else [name, "literal", value, list(stamps(value)) if isinstance(value, str) else []]
            for name, value in sorted(node["inputs"].items())
        ]
        known[node_id] = _digest([node["class_type"], inputs])
    return known[node_id]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
