"""What a kernel refuses with; without torch, so that commands can name it before torch is there."""


class BackendUnavailableError(ValueError):
    """A requested implementation cannot run here; the message gives every reason and the alternative."""
