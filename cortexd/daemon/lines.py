"""Lines on their way out of the process: whoever writes one never waits for who reads it.

A pipe that nobody reads, a full disk, a terminal that was stopped: a plain write to one of these
would hold the event loop, and with it every answer. Here a thread does the writing, and what it
can't keep up with is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from typing import Final

log = logging.getLogger(__name__)

MOST: Final = 1 << 20  # bytes that wait; at a busy gateway's 300 a request some seconds' worth
LAST_WORDS: Final = 1.0  # seconds that the end of the process waits for what is left
PIECE: Final = 1 << 16  # bytes of one write
# Where so many bytes come at once, more will; seconds in which they gather before the next write,
# since each has the threads change places.
MANY: Final = 4096
PAUSE: Final = 0.05


class Lines:
    """A stream of text, as `logging` and the access log write to it, before a descriptor.

    descriptor: None is nowhere. Thread-safe.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._lost = 0  # lines since the last that could be written
        self._changed = threading.Condition(threading.Lock())
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def descriptor(self) -> int | None:
        """The file descriptor that it writes to; None: none."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._descriptor is not None and os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Whole lines, each with its end; they are written soon, or dropped."""
        if self._descriptor is None:
            return 0
        content = text.encode()
        with self._changed:
            if self._held + len(content) > MOST:
                self._lost += text.count("\n")
                return 0
            self._held += len(content)
            self._waiting.append(content)
            if self._thread is None:
                self._start(self._descriptor)
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: streams have it, and waiting is what must not happen here."""

    def close(self) -> None:
        """Wait a moment for what is left."""
        self._is_closing.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._held, LAST_WORDS)

    def _start(self, descriptor: int) -> None:
        # Not before something is said, and never waited for: it may be in a write for ever.
        self._thread = threading.Thread(
            target=self._run, args=(descriptor,), name="lines", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    def _run(self, descriptor: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                content = b"".join(self._waiting)
                self._waiting.clear()
            lost = _put(descriptor, content)
            with self._changed:
                self._held -= len(content)
                self._lost += lost
                missed, self._lost = (0, self._lost) if lost else (self._lost, 0)
                self._changed.notify_all()
            if missed:
                log.warning("%d log lines were lost: nobody took them off stderr in time", missed)
            if len(content) >= MANY:
                self._is_closing.wait(PAUSE)


def _put(descriptor: int, content: bytes) -> int:
    """Write it all; how many of its lines could not be."""
    rest = memoryview(content)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:PIECE]) :]
        except OSError:  # a full disk, a reader that has left
            return bytes(rest).count(b"\n")
    return 0
