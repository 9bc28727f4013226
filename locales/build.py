"""Writes locales/en/nodeDefs.json from a running ComfyUI's own words for the nodes; zh is translated by hand.

`python locales/build.py [http://127.0.0.1:8188]`; users never run it.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "Turbo"  # begins the ids of this pack's nodes


def definitions(info: dict[str, Any]) -> dict[str, Any]:
    """What /object_info says of the nodes, in the form that the frontend translates."""
    return {node: _definition(entry) for node, entry in sorted(info.items()) if node.startswith(OURS)}


def _definition(entry: dict[str, Any]) -> dict[str, Any]:
    inputs = entry["input"].get("required", {}) | entry["input"].get("optional", {})
    tooltips = entry.get("output_tooltips") or [None] * len(entry["output_name"])
    return {
        "display_name": entry["display_name"],
        "description": entry["description"],
        "inputs": {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in inputs.items()},
        "outputs": {
            str(index): {"name": name, "tooltip": tooltip}
            for index, (name, tooltip) in enumerate(zip(entry["output_name"], tooltips, strict=True))
        },
    }


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        found = definitions(json.load(answer))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (HERE / "en").mkdir(exist_ok=True)
    (HERE / "en" / "nodeDefs.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
