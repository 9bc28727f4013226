"""Prompts as they come from a user: in a text file, one a line, or on the command line."""

from __future__ import annotations

from pathlib import Path

from .errors import SettingsError


def read_prompt_lines(path: Path, where: str) -> list[tuple[int, str]]:
    """The lines that are not empty, stripped, with their numbers from 1 on; SettingsError where it is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SettingsError(f"{where}: {path} must exist, there is no such file; check the name") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{where}: {path} must be UTF-8 text, it is not ({error.reason}); save it as UTF-8"
        ) from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def check_prompt(prompt: str, where: str) -> None:
    """SettingsError unless it is text: a terminal in another encoding, or JSON, may bring halves of characters."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"{where}: the prompt must be Unicode text, {prompt[error.start]!a} is none; correct it, or read it "
            "from a UTF-8 file"
        ) from error
