"""`cortexd` as a process of its own, before a gateway in this one."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path

from tests.waiting import GUARD

ROOT = Path(__file__).parents[2]


async def start(
    *arguments: str, cwd: Path, stdout: int = asyncio.subprocess.PIPE, stderr: int, **environ: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortexd", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=environment(**environ),
    )


def environment(**more: str) -> dict[str, str]:
    """Return the variables for a command of this repository, without a width of its terminal."""
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return inherited | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | more


async def cortexd(*arguments: str, cwd: Path, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, stdout, stderr."""
    process = await start(*arguments, cwd=cwd, stderr=asyncio.subprocess.PIPE, **environ)
    async with asyncio.timeout(GUARD):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def on_a_terminal(*arguments: str, cwd: Path, **environ: str) -> str:
    """What a terminal as its stdout was sent, to the end of the command."""
    ours, its = pty.openpty()
    process = await start(
        *arguments, cwd=cwd, stdout=its, stderr=asyncio.subprocess.DEVNULL, **environ
    )
    os.close(its)
    seen = bytearray()
    async with asyncio.timeout(GUARD):
        with suppress(OSError):  # the other end is closed
            while more := await asyncio.to_thread(os.read, ours, 1 << 16):
                seen += more
        await process.wait()
    os.close(ours)
    return seen.decode()
