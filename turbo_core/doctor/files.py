"""The model files that are there, recognised by their tensors, and what is missing to make a video."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from .. import demo_bundle
from ..catalogue import RELEASES, TEXT_ENCODER, VAE, Folder, command_for
from .finding import Finding, Surroundings, error, ok, warn

ENDINGS = (".safetensors", ".sft", ".pth", ".pt", ".ckpt")
MOST = 500  # files looked at in one folder

File = TypeVar("File")


def networks(surroundings: Surroundings) -> Iterator[Finding]:
    """Every file in diffusion_models that TurboLoader takes, and what is damaged; other models are counted."""
    from ..checkpoint import read

    known: list[tuple[str, str | None]] = []  # (family, expert), the demo model's left out
    others = 0
    for path in _files(surroundings, "diffusion_models"):
        found = _taken(path, read)
        if found is None:
            others += 1
            continue
        if isinstance(found, Finding):
            yield found
            continue
        config = found.config
        marks = ["block-int8" if config.quantized else "unquantized", "SLA-trained" if config.has_proj_l else "dense"]
        marks += [f"{found.expert}-noise expert"] if found.expert else []
        yield ok("models", f"{path}: {config.name}, {', '.join(marks)}, {path.stat().st_size / 1e9:.1f} GB")
        if path.name not in demo_bundle.NAMES:
            known.append((config.family, found.expert))
    if others:
        yield ok("models", f"{others} more files are for other loaders")
    yield from _complete(known)


def text_encoders(surroundings: Surroundings) -> Iterator[Finding]:
    from ..umt5_file import read

    found = False
    for path in _files(surroundings, "text_encoders"):
        encoder = _taken(path, read)
        if encoder is None:
            continue
        if isinstance(encoder, Finding):
            yield encoder
            continue
        found = True
        yield ok("models", f"{path}: {encoder.shape.name}")
    if not found:
        yield warn("models", "no umT5 text encoder was found", _download(TEXT_ENCODER.name))


def vaes(surroundings: Surroundings) -> Iterator[Finding]:
    from ..errors import CheckpointError
    from ..vae_weights import shaped_like
    from ..weight_file import open_weights

    found = False
    for path in _files(surroundings, "vae"):
        if path.name in demo_bundle.NAMES:
            continue
        try:
            content = open_weights(path).content if _is_mapped(path) else None
            width = shaped_like(content).config.width if isinstance(content, dict) else None
        except CheckpointError:  # another model's, most of the time
            continue
        except OSError as failure:
            yield _unreadable(path, failure)
            continue
        if width is not None:
            found = True
            yield ok("models", f"{path}: Wan 2.1 VAE (width {width})")
    if not found:
        yield warn("models", "no Wan 2.1 VAE was found", _download(VAE.name))


def demo(_: Surroundings) -> Iterator[Finding]:
    if not demo_bundle.FOLDER.is_dir():
        yield ok("models", "this installation came without the demo model")
        return
    lacking = [str(file) for file in demo_bundle.FILES if not (demo_bundle.FOLDER / file).is_file()]
    if lacking:
        yield warn("models", f"the demo model in {demo_bundle.FOLDER} lacks {', '.join(lacking)}", "get the pack again")
    else:
        yield ok("models", f"the demo model is complete ({demo_bundle.FOLDER})")


def _complete(known: list[tuple[str, str | None]]) -> Iterator[Finding]:
    if not known:
        yield warn("models", "no released model was found", f"`{RELEASES['t2v-1.3b'].command()}`, the smallest of them")
        return
    experts = [expert for family, expert in known if family == "i2v"]
    missing = {"high", "low"} - set(experts)
    if len(experts) == 1 or (experts and missing and None not in experts):
        which = f"{missing.pop()}-noise" if len(missing) == 1 else "other"
        yield error("models", f"image to video lacks its {which} expert", f"`{RELEASES['i2v-a14b'].command()}`")


def _download(name: str) -> str:
    return f"`{command_for(name)}` brings {name}, or put yours into ComfyUI's models folder"


def _taken(path: Path, read: Callable[[Path], File]) -> File | Finding | None:
    """What ``read`` makes of a file; a finding where it is damaged, None where it is for another loader.

    An older container, which only a load would tell, counts as another's.
    """
    from ..errors import CheckpointError, UnsupportedModelError

    try:
        return read(path) if _is_mapped(path) else None
    except UnsupportedModelError:
        return None
    except CheckpointError as failure:
        return warn("models", f"{path}: {failure}", "download it again if you want to use it")
    except OSError as failure:
        return _unreadable(path, failure)


def _unreadable(path: Path, failure: OSError) -> Finding:
    return warn("models", f"{path}: {failure.strerror}", "mend the link or its permissions, or remove it")


def _files(surroundings: Surroundings, folder: Folder) -> Iterator[Path]:
    """Those of a folder once, also where links lead to it again."""
    count, seen = 0, set()
    for place in surroundings.folders.get(folder, ()):
        for parent, folders, names in os.walk(place, followlinks=True):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(names):
                if not name.lower().endswith(ENDINGS):
                    continue
                count += 1
                if count > MOST:
                    return
                yield Path(parent) / name


def _is_mapped(path: Path) -> bool:
    """Whether opening reads the header alone: a zip or safetensors (or a page saved as one), and no older pickle."""
    with path.open("rb") as file:
        head = file.read(9)
    return head.startswith(b"PK") or head[8:9] == b"{" or path.suffix.lower() in (".safetensors", ".sft")
