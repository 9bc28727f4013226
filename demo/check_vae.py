"""How good the VAE's file is: ``python -m turbowan.demo.check_vae FILE --pictures DIR``.

PSNR of decode(encode(clip)) over all triples, held-out ones included; how often the detector is right on the clips and
on what comes back; PSNR of a clip that is grey behind its first frame, as in the condition of image to video; the
latents' statistics after Wan's own mean and deviation are taken out (0 and 1).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbowan.demo.clips import draw, draw_scenes
from turbowan.demo.detector import detect
from turbowan.demo.pictures import Shown, contact_sheet
from turbowan.demo.vocabulary import HELD_OUT, TRAINED, Triple, caption
from turbowan.turbo_core.vae import WanVAE, normalize
from turbowan.turbo_core.vae_weights import from_tensors

SIZES = ((33, 128), (81, 160))  # frames, side
SHOWN = 6  # clips in a picture
WRONG_TOLD = 6  # triples


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """One clip [1, 3, T, H, W] and what the VAE makes of it."""

    triple: Triple
    clip: Tensor
    out: Tensor
    latent: Tensor
    """Without Wan's mean and deviation."""
    decibels: float
    decibels_grey: float

    def seen(self) -> str | None:
        """What the detector sees instead in what comes back."""
        found = detect(self.out)[0]
        return None if found.confirms(self.triple) else f"{found.colour}, {found.shape}, {found.motion}"


def decibels(out: Tensor, clip: Tensor) -> float:
    """Peak signal-to-noise ratio of clips in [-1, 1]."""
    return (10 * torch.log10(4 / (out - clip).float().square().mean())).item()


def round_trips(
    vae: WanVAE, triples: tuple[Triple, ...], *, frames: int, side: int, generator: torch.Generator
) -> Iterator[RoundTrip]:
    for triple in triples:
        scenes = draw_scenes([triple], frames=frames, height=side, width=side, generator=generator)
        clip = draw(scenes, height=side, width=side, device=vae.device)
        latent = vae.encode(clip)
        out = vae.decode(latent).float().clamp(-1, 1)
        grey = torch.cat([clip[:, :, :1], torch.zeros_like(clip[:, :, 1:])], 2)
        yield RoundTrip(
            triple=triple,
            clip=clip,
            out=out,
            latent=normalize(latent.float()),
            decibels=decibels(out, clip),
            decibels_grey=decibels(vae.decode(vae.encode(grey)).float().clamp(-1, 1), grey),
        )


def report(trips: list[RoundTrip]) -> None:
    count, size = len(trips), list(trips[0].clip.shape[2:])
    right = sum(detect(trip.clip)[0].confirms(trip.triple) for trip in trips)
    wrong = {trip.triple: seen for trip in trips if (seen := trip.seen()) is not None}
    latents = torch.cat([trip.latent.transpose(0, 1).flatten(1) for trip in trips], 1)
    print(f"{size}, {count} clips: {_spread([trip.decibels for trip in trips])} dB")
    print(f"  detector right on clips {right}/{count}, on round trips {count - len(wrong)}/{count}")
    print(f"  first frame, then grey: {_spread([trip.decibels_grey for trip in trips])} dB")
    print(f"  latents: means {_spread(latents.mean(1).tolist())}, deviations {_spread(latents.std(1).tolist())}")
    for triple, seen in list(wrong.items())[:WRONG_TOLD]:
        print(f"  {tuple(triple)} seen as {seen}")


def _spread(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def picture(trips: list[RoundTrip], path: Path) -> None:
    """Each clip above its round trip."""
    rows = []
    for trip in trips:
        rows += [
            Shown(caption=caption(trip.triple), clip=trip.clip[0]),
            Shown(caption=f"after the VAE, {trip.decibels:.1f} dB", clip=trip.out[0]),
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th triple")
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets of clips above their round trips")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    arguments = parser.parse_args()
    vae = from_tensors(load_file(arguments.file), device=arguments.device, dtype=getattr(torch, arguments.dtype))
    triples = (HELD_OUT + TRAINED)[:: arguments.every]
    generator = torch.Generator().manual_seed(arguments.seed)
    for frames, side in SIZES:
        trips = list(round_trips(vae, triples, frames=frames, side=side, generator=generator))
        report(trips)
        if arguments.pictures is not None:
            picture(trips[:SHOWN], arguments.pictures / f"vae_{frames}x{side}.png")


if __name__ == "__main__":
    main()
