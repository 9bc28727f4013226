"""The released models: their names, the files each needs, where those lie on the hub and in ComfyUI's models folder.

No size and no checksum stands here: the hub reports both when a file is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import SettingsError

Folder = Literal["diffusion_models", "text_encoders", "vae"]

HUB = "https://huggingface.co"
REPACKAGED = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"


@dataclass(frozen=True, kw_only=True)
class HubFile:
    repository: str
    path: str
    """Within the repository."""
    folder: Folder
    """Of ComfyUI's models folder."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def page(self) -> str:
        """Where a reader sees the file among its repository's others."""
        inside = self.path.rpartition("/")[0]
        return f"{HUB}/{self.repository}/tree/main/{inside}" if inside else f"{HUB}/{self.repository}"

    @property
    def url(self) -> str:
        """What a browser downloads."""
        return f"{HUB}/{self.repository}/resolve/main/{self.path}"


@dataclass(frozen=True, kw_only=True)
class Release:
    name: str
    """What ``turbowan download`` takes."""
    title: str
    quantized: tuple[HubFile, ...]
    """The network; for a pair of experts the high-noise one first."""
    unquantized: tuple[HubFile, ...]

    def network(self, *, quantized: bool = True) -> tuple[HubFile, ...]:
        return self.quantized if quantized else self.unquantized

    def files(self, *, quantized: bool = True) -> tuple[HubFile, ...]:
        """The network and what every model needs beside it."""
        return (*self.network(quantized=quantized), *PARTS.values())

    def command(self, *, quantized: bool = True) -> str:
        """What brings these files."""
        return f"turbowan download {self.name}" + ("" if quantized else " --unquantized")


TEXT_ENCODER = HubFile(
    repository=REPACKAGED,
    path="split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    folder="text_encoders",
)
VAE = HubFile(repository=REPACKAGED, path="split_files/vae/wan_2.1_vae.safetensors", folder="vae")
PARTS: dict[str, HubFile] = {"text-encoder": TEXT_ENCODER, "vae": VAE}
"""What every network needs beside it, by the names that ``turbowan download`` takes for one of them alone."""


def _release(name: str, title: str, repository: str, *experts: str) -> Release:
    """A release whose repository is named as its files are; `experts` stand in theirs before the resolution."""
    stem, _, resolution = repository.rpartition("-")
    stems = [f"{stem}-{expert}-{resolution}" for expert in experts] or [repository]
    quantized, unquantized = (
        tuple(
            HubFile(repository=f"TurboDiffusion/{repository}", path=file + ending, folder="diffusion_models")
            for file in stems
        )
        for ending in ("-quant.pth", ".pth")
    )
    return Release(name=name, title=title, quantized=quantized, unquantized=unquantized)


RELEASES: dict[str, Release] = {
    release.name: release
    for release in (
        _release("t2v-1.3b", "text to video, 1.3B, for 480p", "TurboWan2.1-T2V-1.3B-480P"),
        _release("t2v-14b-480p", "text to video, 14B, for 480p", "TurboWan2.1-T2V-14B-480P"),
        _release("t2v-14b-720p", "text to video, 14B, for 720p", "TurboWan2.1-T2V-14B-720P"),
        _release("i2v-a14b", "image to video, A14B, two experts, for 720p", "TurboWan2.2-I2V-A14B-720P", "high", "low"),
    )
}


def release(name: str) -> Release:
    """The release of that name; SettingsError lists the names."""
    if name not in RELEASES:
        raise SettingsError(f"model: must be one of {', '.join(RELEASES)}, got {name!r}; choose one of them")
    return RELEASES[name]


def known_file(name: str) -> HubFile | None:
    """The catalogue's file of that name, or None."""
    return next((file for file in all_files() if file.name == name), None)


def command_for(name: str) -> str | None:
    """The command that downloads the file of that name, or None where it is in no release."""
    for part, file in PARTS.items():
        if name == file.name:
            return f"turbowan download {part}"
    for entry in RELEASES.values():
        for quantized in (True, False):
            if name in (file.name for file in entry.network(quantized=quantized)):
                return entry.command(quantized=quantized)
    return None


def all_files() -> tuple[HubFile, ...]:
    """Every file of every release, each once."""
    networks = (file for entry in RELEASES.values() for file in (*entry.quantized, *entry.unquantized))
    return (*networks, *PARTS.values())
