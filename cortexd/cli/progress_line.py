"""A line of a terminal that is redrawn while a command runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Final

from cortexd.cli.screen import Screen, plain

BAR: Final = 24  # characters of a bar, where the terminal has room for it
REDRAW: Final = 0.2  # seconds
MARKS: Final = "|/-\\"
CLEAR: Final = "\r\x1b[K"


class ProgressBar:
    """A bar before a text, never wider than the terminal. The bar never goes back."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._fraction: float | None = None

    def reset(self) -> None:
        """Begin again, for another task."""
        self._fraction = None

    def line(self, fraction: float | None, text: str) -> str:
        """Return the line. fraction: 0 to 1; None: unknown, shown as `?` until it is known."""
        if fraction is not None:
            self._fraction = max(min(fraction, 1.0), self._fraction or 0.0)
        width = BAR if self._screen.width is None else max(4, min(BAR, self._screen.width // 4))
        share = "   ?" if self._fraction is None else f"{int(self._fraction * 100):3}%"
        bar = self._screen.bar(self._fraction or 0.0, width)
        return self._screen.fitted(plain(f"{share}  {bar}  {text}"))


def run_quietly(command: Sequence[str], text: str) -> int:
    """Run a command behind one line of text; show its output on stderr only if it fails.

    On a terminal the line has a spinner and the seconds so far. Returns the exit status.
    """
    screen, is_terminal = Screen.of(sys.stdout), sys.stdout.isatty()
    if not is_terminal:
        print(text, flush=True)
    began, mark = time.monotonic(), 0
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(  # noqa: S603 - the callers name their own programs
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    status = child.wait(REDRAW)
                    break
                except subprocess.TimeoutExpired:
                    if is_terminal:
                        seconds = time.monotonic() - began
                        line = f"{MARKS[mark % len(MARKS)]} {text} {seconds:.0f} s"
                        print(f"\r{screen.fitted(line)}", end="", flush=True)
                        mark += 1
        finally:
            if child.poll() is None:  # interrupted
                child.terminate()
                child.wait()
            if is_terminal:
                print(CLEAR, end="", flush=True)
        if is_terminal:
            print(text, flush=True)
        if status != 0:
            output.seek(0)
            print(output.read().decode(errors="replace"), end="", file=sys.stderr, flush=True)
    return status
