"""A model's files as a running ComfyUI lists them: its own names of the best ones that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from .checkpoint import listed
from .comfy_client import ComfyClient
from .errors import ServerError
from .model_choice import Choice

PACK = "Turbo"  # begins the kinds of this pack's nodes
# kind of node → its menu of files
MENUS = {"TurboLoader": "file", "CLIPLoader": "clip_name", "VAELoader": "vae_name"}


def require_node(client: ComfyClient, kind: str) -> dict[str, Any]:
    """What the server says of a kind of node; ServerError where it has none."""
    node = client.node(kind)
    if node is None:
        remedy = "install TurboWan in its custom_nodes" if kind.startswith(PACK) else "update it"
        raise ServerError(f"server: {client.url} must have the node {kind}, it has not; {remedy}, and restart it")
    return node


def locate_on_server(client: ComfyClient, choice: Choice) -> Choice:
    """The choice with the server's names of its files, which may lie in subfolders there.

    Raises:
        ServerError: where it lists none that serve, with what it lists and what brings them.
    """
    network, *low = _first_of(client, "TurboLoader", choice.network_sets, choice)
    (text_encoder,) = _first_of(client, "CLIPLoader", [(name,) for name in choice.text_encoders], choice)
    (vae,) = _first_of(client, "VAELoader", [(choice.vae,)], choice)
    return replace(choice, network=network, low=low[0] if low else None, text_encoder=text_encoder, vae=vae)


def _first_of(client: ComfyClient, kind: str, sets: Sequence[tuple[str, ...]], choice: Choice) -> tuple[str, ...]:
    """The first set of files that the server has all of."""
    menu = _menu(require_node(client, kind), MENUS[kind])
    for names in sets:
        found = [_in_menu(name, menu) for name in names]
        if None not in found:
            return tuple(found)
    known = [name for names in sets for name in names]
    there = dict.fromkeys([*(found for name in known if (found := _in_menu(name, menu)) is not None), *menu])
    command = choice.command_for([name for name in sets[0] if _in_menu(name, menu) is None])
    remedy = f"run `{command}` there, or " if command else ""
    raise ServerError(
        f"server: {client.url} must have {' or '.join(map(' and '.join, sets))} for {kind}, it has "
        f"{listed(there) or 'none'}; {remedy}name another with --model, --low, --vae or --text-encoder"
    )


def _in_menu(name: str, menu: Sequence[str]) -> str | None:
    wanted = Path(name).name if Path(name).is_absolute() else name.replace("\\", "/")
    paths = {option: option.replace("\\", "/") for option in menu}
    by_path = [option for option, path in paths.items() if path == wanted]
    by_name = [option for option, path in paths.items() if PurePosixPath(path).name == wanted]
    return next(iter(by_path + by_name), None)


def _menu(node: dict[str, Any], name: str) -> list[str]:
    """What a node's menu offers, in either form that ComfyUI has for it."""
    inputs = node["input"]
    kind, *rest = (inputs.get("required", {}) | inputs.get("optional", {}))[name]
    return list(kind if isinstance(kind, list) else (rest[0].get("options", []) if rest else []))
