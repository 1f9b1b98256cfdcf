"""A stream to the file that $JOURNAL_STREAM names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Stream(io.StringIO):
    descriptor = -1


@contextmanager
def journal(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """Return the stream, and the variable as systemd sets it."""
    stream = Stream()
    with (place / "journal").open("wb") as file:
        stream.descriptor = file.fileno()
        found = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        yield stream
