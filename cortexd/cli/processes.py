"""Child processes of a command: started with a log of their own, and gone when it is gone."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
STOP_WITHIN = 15.0  # seconds until a child that was asked to stop is killed


class ProcessDied(Exception):
    """A child ended by itself; the message quotes the end of its log."""


def following_us() -> Callable[[], None]:
    """For `preexec_fn`: even a SIGKILL of this process leaves no child of it running."""
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def follow() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # gone before the kernel was asked
            os._exit(1)

    return follow


class Processes:
    """The `cortexd` commands that one command runs beside itself."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Run `cortexd ARGUMENTS…`; its output goes to `<logs>/<name>.log`."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "cortexd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the command; it stops its children in order.
                start_new_session=True,
                preexec_fn=following_us(),  # noqa: PLW1509 - no thread has been started
            )

    def check(self) -> None:
        """Raise ProcessDied for a child that is not running any more."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = (self._logs / f"{name}.log").read_text(errors="replace").strip()
                tail = "\n".join(log.splitlines()[-5:])
                raise ProcessDied(f"{name} ended with status {process.returncode}:\n{tail}")

    async def stop(self) -> None:
        """Ask all of them to stop, the last started first; kill what does not."""
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                await asyncio.to_thread(process.wait, STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
