"""How good the VAE's file is: ``python -m turbowan.demo.check_vae FILE --pictures DIR``.

PSNR of decode(encode(clip)) over all triples, held-out ones included; how often the detector is right on the clips and
on what comes back; the first frame of a clip that is grey behind it; the latents' statistics after Wan's own mean and
deviation are taken out (0 and 1).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.detector import detect
from turbowan.demo.vocabulary import HELD_OUT, TRAINED, Triple
from turbowan.turbo_core.vae import WanVAE, normalize
from turbowan.turbo_core.vae_weights import from_tensors

SIZES = ((33, 128), (81, 160))  # frames, side
SHOWN = 8  # clips in a picture
STRIDE = 8  # frames from one column of a picture to the next


def decibels(out: Tensor, clip: Tensor) -> float:
    """Peak signal-to-noise ratio of clips in [-1, 1]."""
    return (10 * torch.log10(4 / (out - clip).float().square().mean())).item()


def clips(
    triples: tuple[Triple, ...], frames: int, side: int, seed: int, device: str
) -> Iterator[tuple[Triple, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for triple in triples:
        scenes = draw_scenes([triple], frames=frames, height=side, width=side, generator=generator)
        yield triple, draw(scenes, height=side, width=side, device=device)


def check(
    vae: WanVAE, triples: tuple[Triple, ...], *, frames: int, side: int, seed: int, pictures: Path | None
) -> None:
    heard: list[float] = []
    right = {"clips": 0, "round trips": 0}
    wrong, strips, latents, starts = [], [], [], []
    for triple, clip in clips(triples, frames, side, seed, str(vae.device)):
        z = vae.encode(clip)
        out = vae.decode(z).clamp(-1, 1)
        heard.append(decibels(out, clip))
        latents.append(normalize(z.float()).transpose(0, 1).flatten(1).cpu())
        right["clips"] += detect(clip)[0].confirms(triple)
        finding = detect(out)[0]
        right["round trips"] += finding.confirms(triple)
        if not finding.confirms(triple):
            wrong.append(f"{tuple(triple)} seen as {finding.colour}, {finding.shape}, {finding.motion}")
        condition = torch.cat([clip[:, :, :1], torch.zeros_like(clip[:, :, 1:])], 2)
        starts.append(decibels(vae.decode(vae.encode(condition)).clamp(-1, 1), condition))
        if len(strips) < 2 * SHOWN:
            strips += [clip[0, :, ::STRIDE], out[0, :, ::STRIDE].float()]
    count, values = len(heard), torch.cat(latents, 1)
    shares = "  ".join(f"detector on {name} {n}/{count}" for name, n in right.items())
    print(f"{frames} x {side} x {side}, {vae.dtype}: {sum(heard) / count:.2f} dB (worst {min(heard):.2f})  {shares}")
    print(f"  first frame, then grey: {sum(starts) / count:.2f} dB (worst {min(starts):.2f})")
    print(f"  latents: mean {_told(values.mean(1))}, deviation {_told(values.std(1))}")
    for line in wrong[:6]:
        print("  wrong:", line)
    if pictures is not None:
        save_strips(strips, pictures / f"vae_{frames}x{side}.png")


def _told(values: Tensor) -> str:
    return f"{values.min().item():.2f}..{values.max().item():.2f}"


def save_strips(strips: list[Tensor], path: Path) -> None:
    """Rows of frames [3, T, H, W] in [-1, 1], one under another, as a PNG."""
    from PIL import Image

    rows = [strip.permute(2, 1, 3, 0).flatten(1, 2) for strip in strips]  # [H, T·W, 3]
    pixels = ((torch.cat(rows) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th triple")
    parser.add_argument("--pictures", type=Path, help="folder for strips of clips above their round trips")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    vae = from_tensors(load_file(arguments.file), device=arguments.device, dtype=getattr(torch, arguments.dtype))
    triples = (HELD_OUT + TRAINED)[:: arguments.every]
    for frames, side in SIZES:
        check(vae, triples, frames=frames, side=side, seed=arguments.seed, pictures=arguments.pictures)


if __name__ == "__main__":
    main()
