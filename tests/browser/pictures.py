"""Writes docs/pictures: the shipped workflows, and a node with its help, in ComfyUI's real frontend.

`make pictures` runs it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import frontend, make_browser
from host import make_venv
from host.server import REPO
from PIL import Image

PICTURES = REPO / "docs" / "pictures"
HELP = "TurboI2VSampler"  # the node that is shown with its help page
COLOURS = 256  # of a palette: half of JPEG's bytes, and text stays sharp
SPREAD = Image.Quantize.MAXCOVERAGE  # keeps the colours of thin links too; rounds of k-means then give exact greys


def main() -> None:
    checkout = make_venv.comfyui_dir()
    if checkout is None:
        sys.exit("pictures: COMFYUI_DIR must name a ComfyUI checkout; clone one, or set it")
    if make_browser.lacking():
        names = ", ".join(make_browser.lacking())
        sys.exit(f"pictures: a browser and its driver must be installed, {names} cannot be found; run `make browser`")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base, shots = Path(folder) / "comfyui", Path(folder) / "shots"
        with frontend.comfyui(checkout, make_venv.make(checkout), base) as process:
            frontend.drive("pictures.cjs", process, shots, help=HELP)
        for shot in sorted(shots.glob("*.png")):
            _write(shot, PICTURES / shot.name)


def _write(shot: Path, target: Path) -> None:
    with Image.open(shot) as image:
        image.convert("RGB").quantize(COLOURS, SPREAD, kmeans=4, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
