"""Paths as a configuration or a command line spells them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def expanded(name: str) -> Path:
    """Return `name` as a path; a leading `~` or `~user` is that user's home directory."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user, or no home: taken literally, and not found by that name
        return Path(name)


def located(base: Path, name: str) -> Path:
    """Return the path called `name`: `~` is expanded, and relative paths start at `base`."""
    return base / expanded(name)


def locate(directories: Sequence[Path], path: str) -> Path:
    """Return a configured model file: absolute, or below the first directory that has it.

    Reads directories.
    """
    name = expanded(path)
    if name.is_absolute() or not directories:
        return name
    candidates = [directory / name for directory in directories]
    return next((each for each in candidates if is_there(each)), candidates[0])


def is_there(path: Path) -> bool:
    """Return whether there is something of that name, as far as this user may look."""
    try:
        path.stat()
    except (OSError, ValueError):  # `Path.exists` raises some of these, on some versions of Python
        return False
    return True


def reason(error: OSError | ValueError) -> str:
    """Return why a file can't be opened, in the same words on every version of Python."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "its name holds a NUL byte"
