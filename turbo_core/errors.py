"""What can go wrong, as a user meets it.

Every message has the form ``where: what must hold, what came; remedy``. All are ``ValueError``s, so that a
host shows them and goes on; running out of GPU memory stays torch's own type, because hosts unload models on it.
"""

from ..kernels.errors import BackendUnavailableError

__all__ = [
    "BackendUnavailableError",
    "CheckpointError",
    "ConditioningError",
    "DownloadError",
    "LatentError",
    "NonFiniteError",
    "ServerError",
    "ServerGoneError",
    "SettingsError",
    "TurboWanError",
    "UnsupportedModelError",
]


class TurboWanError(ValueError):
    """Base of the errors that turbo_core raises on purpose; a kernel's own is `BackendUnavailableError`."""


class CheckpointError(TurboWanError):
    """A model file cannot be used: missing, truncated, unsafe, incomplete or holding NaN."""


class UnsupportedModelError(CheckpointError):
    """A sound file of another model family; the message names the loader that takes it."""


class ConditioningError(TurboWanError):
    """Text or image conditioning of the wrong shape or family."""


class LatentError(TurboWanError):
    """A latent or image whose size the model cannot take."""


class ServerError(TurboWanError):
    """A ComfyUI elsewhere cannot or did not make the video."""


class ServerGoneError(ServerError):
    """Nobody answers there."""


class SettingsError(TurboWanError):
    """A setting out of its range, or one that this file or machine cannot serve."""


class DownloadError(TurboWanError):
    """A file cannot be had from the hub, or what came is not what the hub promised."""


class NonFiniteError(TurboWanError):
    """A step produced NaN or infinity."""
