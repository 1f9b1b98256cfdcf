"""The access log: one line per inference request, for a small part of what `logging` would cost.

Lines are written many at a time, in the form of the other logs, nothing but printable ASCII.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import Final, Literal

import msgspec

from cortexd.config.logs import Format
from cortexd.daemon.logs import TextStream, escaped, layout, priority


class AccessLine(msgspec.Struct, omit_defaults=True, tag_field="logger", tag="cortexd.access"):
    """One request. Times are in seconds; `ts` is since the epoch. What is not known is left out."""

    ts: float
    level: Literal["info"]
    request_id: str
    path: str
    status: int
    duration_s: float
    client: str | None = None
    code: str | None = None
    model: str | None = None
    node: str | None = None
    route: str | None = None
    first_byte_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


_encode: Final = msgspec.json.Encoder().encode


class AccessLog:
    """Writes lines to `stream`, which belongs to somebody else."""

    def __init__(self, stream: TextStream, form: Format = "auto") -> None:
        self._stream = stream
        self._format = _FORMATS[layout(stream, form)]

    def write(self, lines: list[AccessLine]) -> None:
        """Write them at once; a full disk or a closed pipe harms nothing."""
        with suppress(OSError, ValueError):
            self._stream.write(self._format(lines))
            self._stream.flush()


def _json(lines: list[AccessLine]) -> str:
    text = b"\n".join(map(_encode, lines))
    if not text.isascii():
        text = b"\n".join(json.dumps(json.loads(_encode(line))).encode() for line in lines)
    return text.decode() + "\n"


def _words(lines: list[AccessLine]) -> str:
    return "".join(
        f"{time.strftime('%H:%M:%S', time.localtime(line.ts))} INFO    {_in_words(line)}\n"
        for line in lines
    )


def _journal(lines: list[AccessLine]) -> str:
    return "".join(f"<{_INFO}>{_in_words(line)}\n" for line in lines)


def _in_words(line: AccessLine) -> str:
    """Return status, model, node and duration first; the other fields follow by name."""
    text = (
        f"{line.status} {line.model or '-'} {line.node or '-'} {line.duration_s:.3f}s {line.path} "
        f"request_id={line.request_id}"
    )
    for name in _OPTIONAL:
        if (value := getattr(line, name)) is not None:
            text += f" {name}={value}"
    return escaped(text)


_INFO: Final = priority(logging.INFO)
_OPTIONAL: Final = ("client", "code", "route", "first_byte_s", "prompt_tokens", "completion_tokens")
_FORMATS: Final = {"words": _words, "journal": _journal, "json": _json}
