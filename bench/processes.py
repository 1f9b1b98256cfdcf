"""Processes that are measured or measure: started, waited for, weighed, and always ended."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from cortexd.cli.processes import following_us

START_LIMIT = 30.0  # seconds for a process to answer its first request
STOP_LIMIT = 5.0  # seconds after SIGTERM before SIGKILL
ROOT = Path(__file__).parents[1]


class Processes:
    """Every process of one run. Leaving the block ends them all, whatever happened.

    Each gets a session of its own, so that Ctrl-C comes to us alone and nobody dies halfway
    through an orderly end; and it is told to end should we vanish.

    apart: who is measured has one core to itself, who measures has the others. Where they take
    turns on a core, each leaves cold caches to the next, and a figure tells of all of them.
    """

    def __init__(self, *, apart: bool = False) -> None:
        ours = theirs = sorted(os.sched_getaffinity(0))
        if apart and len(ours) > 1:
            ours, theirs = ours[:-1], ours[-1:]
        self._ours, self._theirs = ours, theirs
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running):
            self.stop(process)
        signal.signal(signal.SIGTERM, self._before)

    def start(
        self,
        command: Sequence[str],
        *,
        log: Path | None = None,
        pipes: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start `command`; what it says goes to `log`. `pipes`: it measures; stdin and stdout are
        ours."""
        output: IO[bytes] | int = log.open("ab") if log else subprocess.DEVNULL
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=None if pipes else output,
            start_new_session=True,
            preexec_fn=_on(self._ours if pipes else self._theirs),  # noqa: PLW1509 - we have one thread
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )
        if not isinstance(output, int):
            output.close()
        self._running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and its children: asked first, then made to."""
        if process in self._running:
            self._running.remove(process)
        for sign, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limit)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _on(cores: Collection[int]) -> Callable[[], None]:
    """For `preexec_fn`: before it counts the cores that there are for it."""
    follow = following_us()

    def prepare() -> None:
        follow()
        os.sched_setaffinity(0, cores)

    return prepare


class Companion:
    """A process of ours that takes commands on stdin and answers on stdout, a JSON line each."""

    def __init__(self, processes: Processes, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process = processes.start(command, pipes=True)

    def tell(self, command: object) -> None:
        """Send a command; the answer is for `hear`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The next line it says. Raises RuntimeError when it has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return json.loads(line)

    def has_answered(self, within: float) -> bool:
        """Whether `hear` would return at once, after waiting for `within` seconds at most."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], within)[0])

    def ask(self, command: object) -> Any:
        """Send a command and wait for its answer."""
        self.tell(command)
        return self.hear()


def raise_file_limit() -> None:
    """As many descriptors as we may have: every connection is one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def wait_stdin_closed() -> None:
    """Until whoever started us closes our stdin, or is no more."""
    reader = await stdin_lines()
    while await reader.readline():
        pass


async def stdin_lines() -> asyncio.StreamReader:
    """Our stdin as lines, without blocking the loop."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(port: int, path: str, body: bytes, limit: float) -> int:
    """The status that a POST of JSON brings. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status


def get_json(port: int, path: str) -> Any:
    """The JSON that a GET brings. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.load(connection.getresponse())


def wait_answering(process: subprocess.Popen[bytes], port: int, path: str, body: bytes) -> None:
    """Until a POST of `body` is answered with a 200. Raises RuntimeError if that never comes."""
    deadline, last = time.monotonic() + START_LIMIT, "nothing"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended at once, with status {process.returncode}")
        try:
            status = post(port, path, body, START_LIMIT)
        except (OSError, http.client.HTTPException) as error:
            last = str(error)
        else:
            if status == 200:
                return
            last = f"status {status}"
        time.sleep(0.05)
    raise RuntimeError(f"no answer within {START_LIMIT:g} s; the last try brought {last}")


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants that live."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, of a process and its descendants.

    The sum that /proc/PID/stat gives in ticks of 10 ms, read from each process's CPU clock, in ns
    (the id is what clock_getcpuclockid(3) makes of a pid).
    """
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~member << 3) | 2)
    return total / 1e9


def resident_kib(pid: int) -> float:
    """Resident memory of a process and its descendants, in KiB."""
    pages = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


def socket_count(pid: int) -> int:
    """How many sockets a process and its descendants hold."""
    return sum(1 for member in tree(pid) for link in _links(member) if link.startswith("socket:"))


def _links(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())
