"""Which files a video is made with: those of the demo model in the pack, of a released model, or named one by one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from . import demo_bundle
from .catalogue import RELEASES, TEXT_ENCODER, VAE, Folder, Release, command_for
from .errors import SettingsError
from .model_folders import find, search_folders, target_folder
from .pipeline import ModelFiles
from .video_size import Size

DEMO = "demo"
DEMO_SIZE: Size = (160, 160)
SIZE_480P: Size = (832, 480)
SIZE_720P: Size = (1280, 720)
FRAMES = 81
# Besides the catalogue's, which is the smallest.
OTHER_TEXT_ENCODERS = ("umt5_xxl_fp16.safetensors", "umt5_xxl_bf16.safetensors")


@dataclass(frozen=True, kw_only=True)
class Named:
    """Files that a user names instead of the model's own; where None, the model's."""

    low: str | None = None
    vae: str | None = None
    text_encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model by the names of its files.

    Attributes:
        name: as the user knows it.
        release: what `turbowan download` brings, or None.
        size: of the videos that it was trained for; with an image, their area.
    """

    name: str
    network: str
    low: str | None = None
    vae: str
    text_encoder: str
    size: Size
    frames: int = FRAMES
    release: Release | None = None

    @property
    def files(self) -> ModelFiles:
        """Of a choice that was located."""
        return ModelFiles(
            network=Path(self.network),
            low=None if self.low is None else Path(self.low),
            vae=Path(self.vae),
            text_encoder=Path(self.text_encoder),
        )

    @property
    def networks(self) -> tuple[str, ...]:
        return (self.network,) if self.low is None else (self.network, self.low)

    @property
    def network_sets(self) -> tuple[tuple[str, ...], ...]:
        """The files that serve as its network, the best first: a release's quantized ones, then the unquantized."""
        if self.release is None:
            return (self.networks,)
        pairs = zip(self.release.quantized, self.release.unquantized, strict=True)
        unquantized = {quantized.name: other.name for quantized, other in pairs}
        return (self.networks, tuple(unquantized.get(name, name) for name in self.networks))

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The files that serve as its text encoder, the best first."""
        usual = self.text_encoder == TEXT_ENCODER.name
        return (self.text_encoder, *OTHER_TEXT_ENCODERS) if usual else (self.text_encoder,)

    def command_for(self, missing: Collection[str]) -> str | None:
        """What downloads one of these files or more; None where all of them are a user's own."""
        known = [name for name in missing if command_for(name) is not None]
        if self.release is not None and len(known) > 1:
            return self.release.command()
        return command_for(known[0]) if known else None


def choose(model: str | None, named: Named, *, image: bool, server: bool = False) -> Choice:
    """The model of that name: `demo`, a release, or a file. Without a name the demo model, on a server a released one.

    Args:
        image: whether the video begins with one.
        server: whether the files are those of a ComfyUI elsewhere.
    """
    if model is None:
        model = ("i2v-a14b" if image else "t2v-1.3b") if server else DEMO
    if model == DEMO:
        if server:
            raise SettingsError(
                f"model: {DEMO} runs here, not on a server; leave out --server, or choose one of {', '.join(RELEASES)}"
            )
        choice = _demo(image)
    elif model in RELEASES:
        choice = _released(RELEASES[model])
    elif Path(model).suffix.lower() in (".pth", ".pt", ".ckpt", ".safetensors", ".sft"):
        choice = Choice(
            name=Path(model).name, network=model, vae=VAE.name, text_encoder=TEXT_ENCODER.name, size=SIZE_480P
        )
    else:
        raise SettingsError(
            f"model: must be {DEMO}, {', '.join(RELEASES)} or a model file, got {model!r}; choose one of them"
        )
    return replace(
        choice,
        low=named.low or choice.low,
        vae=named.vae or choice.vae,
        text_encoder=named.text_encoder or choice.text_encoder,
    )


def locate(choice: Choice, models_dir: Path | None) -> Choice:
    """The choice with paths: as named, else in the models folder; SettingsError says what is missing, what brings it.

    Of a release whose quantized files are not there, the unquantized ones serve.
    """
    networks = next((names for names in choice.network_sets if _all_there(names, models_dir)), choice.networks)
    encoders = (_find(name, "text_encoders", models_dir) for name in choice.text_encoders)
    found = {
        "diffusion_models": [_find(name, "diffusion_models", models_dir) for name in networks],
        "vae": [_find(choice.vae, "vae", models_dir)],
        "text_encoders": [next((path for path in encoders if path is not None), None)],
    }
    names = {"diffusion_models": networks, "vae": (choice.vae,), "text_encoders": (choice.text_encoder,)}
    missing = [
        (folder, name)
        for folder in found
        for name, path in zip(names[folder], found[folder], strict=True)
        if path is None
    ]
    if missing:
        raise SettingsError(_missing(choice, missing, models_dir))
    network, *low = map(str, found["diffusion_models"])
    return replace(
        choice,
        network=network,
        low=low[0] if low else None,
        vae=str(found["vae"][0]),
        text_encoder=str(found["text_encoders"][0]),
    )


def _demo(image: bool) -> Choice:
    folder = demo_bundle.FOLDER
    return Choice(
        name=DEMO,
        network=str(folder / (demo_bundle.I2V_HIGH if image else demo_bundle.T2V)),
        low=str(folder / demo_bundle.I2V_LOW) if image else None,
        vae=str(folder / demo_bundle.VAE),
        text_encoder=str(folder / demo_bundle.TEXT_ENCODER),
        size=DEMO_SIZE,
    )


def _released(release: Release) -> Choice:
    network, *low = (file.name for file in release.quantized)
    return Choice(
        name=release.name,
        network=network,
        low=low[0] if low else None,
        vae=VAE.name,
        text_encoder=TEXT_ENCODER.name,
        size=SIZE_720P if "720P" in network else SIZE_480P,
        release=release,
    )


def _all_there(names: Iterable[str], models_dir: Path | None) -> bool:
    return all(_find(name, "diffusion_models", models_dir) is not None for name in names)


def _find(name: str, folder: Folder, models_dir: Path | None) -> Path | None:
    path = Path(name).expanduser()
    return path if path.is_file() else find(name, folder, models_dir)


def _missing(choice: Choice, missing: list[tuple[Folder, str]], models_dir: Path | None) -> str:
    if choice.name == DEMO:
        names = ", ".join(Path(name).name for _, name in missing)
        return (
            f"model: the demo model must lie in {demo_bundle.FOLDER}, {names} is not there; take a copy of the "
            "repository that has it, or choose a released model with --model"
        )
    names = ", ".join(f"{folder}/{name}" for folder, name in missing)
    places = {str(place) for folder, _ in missing for place in search_folders(folder, models_dir)}
    places = places or {str(target_folder(folder, models_dir)) for folder, _ in missing}
    remedy = "give its path, or name the folder of your models with --models-dir"
    command = choice.command_for([name for _, name in missing])
    if command is not None:
        remedy = f"run `{command}{'' if models_dir is None else f' --to {models_dir}'}`, or {remedy}"
    return f"model: {choice.name} must have its files in {', '.join(sorted(places))}; missing: {names}; {remedy}"
