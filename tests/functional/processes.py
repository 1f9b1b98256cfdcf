"""Real `cortexd` processes, and clean ends for them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tomlkit

from tests.neuron.engines import smollm2
from tests.waiting import GUARD

_LISTENING = re.compile(r"listening on (http://[^\s,\"]+)")


class Daemon:
    """One running command; `url` is where it listens, `log` what it has said."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, url: str) -> None:
        self.process = process
        self.log = log
        self.url = url

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(GUARD):
            return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL, as a crash would be."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def daemon(
    place: Path, name: str, command: str, config: dict[str, Any], **environment: str
) -> AsyncIterator[Daemon]:
    """`cortexd COMMAND` with that configuration, until it listens; stopped at the end."""
    file, log = place / f"{name}.toml", place / f"{name}.log"
    file.write_text(tomlkit.dumps(config))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cortexd", command, "--config", str(file)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
        )
    if command == "neuron":
        # Its engines take a thread for each core they may use, and threads that spin for each
        # other are slow where the cores are shared.
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    try:
        async with asyncio.timeout(GUARD):
            while (found := _LISTENING.search(log.read_text())) is None:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.01)
        yield Daemon(process, log, found[1])
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(GUARD):
                    await process.wait()
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                await process.wait()
                raise


def neuron_config(
    place: Path, *models: dict[str, Any], host: str = "127.0.0.1", **settings: Any
) -> dict[str, Any]:
    """A neuron's configuration; the sample model's file is in its library as `smollm2-135m`."""
    library = place / "models"
    library.mkdir(exist_ok=True)
    file = library / "smollm2-135m.gguf"
    if not file.is_symlink():
        file.symlink_to(smollm2())
    return {
        "neuron": {"listen": f"{host}:0"} | settings,
        "paths": {"models": [str(library)], "logs": str(place)},
        "models": list(models),
    }


def gateway_config(
    neurons: dict[str, str], *models: dict[str, Any], **sections: Any
) -> dict[str, Any]:
    """A gateway's configuration in front of neurons (name → URL)."""
    return {
        "gateway": {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "state_dir": "state",
        },
        "polling": {"interval": "200ms", "timeout": "1m"},
        "loading": {"keepalive": "10m"},  # a slow load must not become a stream without a node
        "neurons": [{"name": name, "endpoint": url} for name, url in neurons.items()],
        "models": list(models),
        **sections,
    }


def children(pid: int) -> list[int]:
    """The living child processes of a process (a zombie is not alive)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
