"""Logs on stderr: one line per event; words on a terminal, JSON anywhere else.

Whatever an event carries (a model's name, a node's words) is escaped: no line ever holds a control
character or more than ASCII.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = {
    "aiohttp": logging.WARNING,
    "asyncio": logging.WARNING,
    "urllib3": logging.WARNING,
    "python_multipart": logging.ERROR,  # that a form is bad is told to whoever sent it
}


def configure(level: str = "info") -> None:
    """Send every event of `level` or above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Words() if sys.stderr.isatty() else Json())
    logging.raiseExceptions = False  # a full disk or a closed pipe harms nothing
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


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
