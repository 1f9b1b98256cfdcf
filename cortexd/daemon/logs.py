"""Logs on stderr: one line per event; text on a terminal and in the systemd journal, JSON anywhere
else, or as configured.

Whatever an event carries (a model's name, a node's words) is escaped: no line ever holds a control
character or more than ASCII.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, Protocol

from cortexd.config.logs import Format, Logging
from cortexd.daemon.lines import Lines

Layout = Literal["words", "journal", "json"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = {
    "aiohttp": logging.WARNING,
    "asyncio": logging.WARNING,
    "urllib3": logging.WARNING,
    "python_multipart": logging.ERROR,  # that a form is bad is told to whoever sent it
}


def configure(settings: Logging | None = None, stream: TextStream | None = None) -> TextStream:
    """Send every event that `settings` asks for to `stream`, and return it. May be called again.

    settings: None is the defaults. stream: None is stderr, in a way that never makes anybody wait.
    """
    settings, stream = settings or Logging(), stream or _stderr()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATTERS[layout(stream, settings.format)]())
    logging.raiseExceptions = False  # a full disk or a closed pipe harms nothing
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)
    return stream


def layout(stream: TextStream, form: Format, environ: Mapping[str, str] = os.environ) -> Layout:
    """Return how lines of that format look on that stream: `words`, `journal` or `json`."""
    if form == "json":
        return "json"
    if is_journal(stream, environ):
        return "journal"
    return "words" if form == "text" or stream.isatty() else "json"


def is_journal(stream: TextStream, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the stream leads to the systemd journal (systemd.exec(5), $JOURNAL_STREAM)."""
    descriptor = getattr(stream, "descriptor", None)
    if descriptor is None or not (told := environ.get("JOURNAL_STREAM")):
        return False
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"  # a redirected stderr inherits the variable


@cache
def _stderr() -> TextStream:
    """The one writer to it. A process that was started without one says nothing: its descriptor
    may be anybody's by now."""
    try:
        return Lines(None if sys.__stderr__ is None else sys.__stderr__.fileno())
    except (OSError, ValueError):
        return Lines(None)


class TextStream(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> int:
        """Whole lines."""

    def flush(self) -> None:
        """Do not keep them."""

    def isatty(self) -> bool:
        """Whether a person reads them."""


class Words(logging.Formatter):
    """`12:30:01 INFO  message  key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or more with a traceback: a person at a terminal can read that."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{clock} {record.levelname:<7} {escaped(record.getMessage() + fields)}"
        if record.exc_info:
            # Its last line may hold anything; what ends a line here is only what Python puts there.
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n{escaped(part)}" for part in traceback.split("\n"))
        return line


class Journal(logging.Formatter):
    """Writes `<4>message  key=value …`: the journal adds the time, and takes the priority off."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or more with a traceback, each with the priority (sd-daemon(3))."""
        fields = "".join(f" {name}={value}" for name, value in _extra(record).items())
        lines = [record.getMessage() + fields]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(f"{mark}{escaped(line)}" for line in lines)


def priority(level: int) -> int:
    """Return the syslog priority of a level: 7 is debug, 6 info, 4 warning, 3 error, 2 critical."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


class Json(logging.Formatter):
    """`{"ts":…,"level":…,"logger":…,"msg":…}` and what the event carries besides."""

    def format(self, record: logging.LogRecord) -> str:
        """Always one line of ASCII."""
        event: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        event |= _extra(record)
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


_FORMATTERS: Final = {"words": Words, "journal": Journal, "json": Json}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def escaped(text: str) -> str:
    """In printable ASCII, whatever it holds."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isascii() and char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
