"""The sole owner of what is loaded here: who may start an engine, use it, and end it.

Each model that is known has an `_Entry`; each life of an engine, from the start of its load to
its exit, is a `_Run` with one task. Taking the run out of its entry is what unloads a model: the
task then lets the requests that it serves end, and ends the engine. No connection owns a load.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cortexd.config.files import locate
from cortexd.config.neuron import LocalModel
from cortexd.daemon.tasks import Tasks
from cortexd.errors import BUSY, MODEL_NOT_FOUND, SHUTTING_DOWN, Refusal
from cortexd.neuron import library
from cortexd.neuron.devices import Devices
from cortexd.neuron.harness import Engine, EngineError, FileMissing, Harness, Launch
from cortexd.neuron.refusals import (
    CUDA_UNAVAILABLE,
    INSUFFICIENT_VRAM,
    LOAD_CANCELLED,
    LOAD_FAILED,
    MODEL_TOO_LARGE,
    UNKNOWN_DEVICE,
    UNKNOWN_HARNESS,
)
from cortexd.wire import neuron as wire

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Run:
    """One life of an engine.

    up: its engine, or why there is none; never an exception, since there may be nobody to hear it.
    engine: from the moment it is started; the requests wait for `up`.
    needed_mb: what it was let in for; 0 before that.
    requests: those that hold it, of which the engine answers `serving`; the others wait for it.
    """

    status: str  # loading or reloading, then loaded
    devices: tuple[int, ...]
    up: asyncio.Future[Engine | Refusal]
    engine: Engine | None = None
    needed_mb: int = 0
    requests: int = 0
    serving: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    is_ending: bool = False


@dataclass(eq=False, slots=True)
class _Entry:
    """A model that is known here. `error`: why its last load failed."""

    model: LocalModel
    configured: bool
    run: _Run | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        """In the words of the wire."""
        if self.run is not None:
            return self.run.status
        return wire.FAILED if self.error else wire.UNLOADED

    @property
    def is_forgettable(self) -> bool:
        """Whether only a failure is left of it."""
        return self.run is None and not self.configured


class Residency:
    """The models of this host.

    load_timeout: seconds until an engine must answer.
    drain: seconds that running requests get when their model is unloaded.
    """

    def __init__(
        self,
        models: Sequence[LocalModel],
        harnesses: Mapping[str, Harness],
        devices: Devices,
        *,
        directories: Sequence[Path] = (),
        load_timeout: float = 1800.0,
        drain: float = 5.0,
    ) -> None:
        self._harnesses = harnesses
        self._devices = devices
        self._directories = tuple(directories)
        self._load_timeout = load_timeout
        self._drain = drain
        self._entries = {model.id: _Entry(model, configured=True) for model in models}
        self._runs: set[_Run] = set()
        self._tasks = Tasks()
        self._closing = False

    # What is here.

    def knows(self, model_id: str) -> bool:
        """Whether requests for this model are served, after a load if need be."""
        return self._entry(model_id) is not None

    @property
    def used_mb(self) -> int:
        """MiB that all engines take, those that are about to end too."""
        return sum(self._memory_mb(run) for run in self._runs)

    def models(self) -> list[wire.Model]:
        """Every known model, as GET /models lists it."""
        return [self._described(entry) for entry in self._entries.values()]

    def loads(self) -> list[wire.ModelLoad]:
        """How busy each model with an engine is; what exceeds its slots queues in the engine."""
        return [
            wire.ModelLoad(
                id=entry.model.id,
                in_flight=min(run.serving, entry.model.parallel),
                queue_depth=max(0, run.requests - min(run.serving, entry.model.parallel)),
                max_in_flight=entry.model.parallel,
            )
            for entry in self._entries.values()
            if (run := entry.run) is not None
        ]

    # What changes it.

    async def load(self, request: wire.LoadRequest) -> None:
        """Make a model resident, or join the load that is under way. Raises Refusal."""
        harness = request.harness or next(iter(self._harnesses), "")
        if harness not in self._harnesses:
            there = ", ".join(self._harnesses)
            raise Refusal(UNKNOWN_HARNESS, f"There is no harness {harness!r} here, only {there}.")
        devices = tuple(request.devices or ())
        if unknown := self._devices.unknown(devices):
            raise Refusal(UNKNOWN_DEVICE, f"This host has no device {unknown[0]}.")
        entry = self._entry(request.model_id)
        if entry is None or entry.is_forgettable:
            entry = await self._found(request, harness)
        await _wait_up(entry.run or self._begin(entry, wire.LOADING, devices))

    async def unload(self, model_id: str, *, if_idle: bool = False) -> None:
        """End a model's engine, or its load. Raises Refusal: model_not_found, busy."""
        entry = self._known(model_id)
        run = entry.run
        if run is not None and if_idle and run.requests:
            raise Refusal(
                BUSY, f"{entry.model.id} is busy; requests that run or wait: {run.requests}."
            )
        entry.run, entry.error = None, None
        if not entry.configured:
            del self._entries[entry.model.id]
        if run is not None:
            log.info("unloading %s", entry.model.id)
            await asyncio.shield(self._tasks.spawn(f"unload {entry.model.id}", self._end(run)))

    @asynccontextmanager
    async def serving(self, model_id: str) -> AsyncIterator[Engine]:
        """The engine of a model, which is not unloaded as idle meanwhile; waits until it is up.

        Raises Refusal.
        """
        entry = self._known(model_id)
        run = entry.run or self._begin(entry, wire.RELOADING)
        run.requests += 1
        run.idle.clear()
        try:
            try:
                engine = await _wait_up(run)
            except Refusal as refusal:
                if refusal.kind is MODEL_NOT_FOUND:  # the model is known here, its file is missing
                    raise Refusal(LOAD_FAILED, refusal.message) from refusal
                raise
            run.serving += 1
            try:
                yield engine
            finally:
                run.serving -= 1
        finally:
            run.requests -= 1
            if not run.requests:
                run.idle.set()

    async def close(self) -> None:
        """Let running requests end, for a few seconds, then end every engine; load no more."""
        self._closing = True
        for entry in self._entries.values():
            entry.run = None
        await asyncio.gather(*(self._end(run) for run in list(self._runs)))
        await self._tasks.close()

    # How.

    def _entry(self, model_id: str) -> _Entry | None:
        """A model may be called by `source:id`, too, when no id has that very name."""
        return self._entries.get(model_id) or self._entries.get(model_id.partition(":")[2])

    def _known(self, model_id: str) -> _Entry:
        entry = self._entry(model_id)
        if entry is None:
            raise Refusal(
                MODEL_NOT_FOUND,
                f"The model {model_id!r} is not loaded here, and [[models]] does not list it.",
            )
        return entry

    async def _found(self, request: wire.LoadRequest, harness: str) -> _Entry:
        """The entry of a model of which there is a file named like it."""
        model_id, path = await asyncio.to_thread(
            library.find, self._directories, request.model_id, request.quant
        )
        entry = self._entries.get(model_id)
        if entry is None or entry.is_forgettable:  # nobody else has begun meanwhile
            entry = _Entry(LocalModel(id=model_id, path=str(path), harness=harness), False)
            self._entries[model_id] = entry
        return entry

    def _begin(self, entry: _Entry, status: str, devices: tuple[int, ...] = ()) -> _Run:
        if self._closing:
            raise Refusal(SHUTTING_DOWN, "This neuron is shutting down; ask another one.")
        run = _Run(status, devices, asyncio.get_running_loop().create_future())
        run.idle.set()
        run.life = self._tasks.spawn(f"engine of {entry.model.id}", self._live(entry, run))
        # Not left to the task itself: one that is cancelled before its first step never runs.
        run.life.add_done_callback(lambda _: self._over(entry, run))
        self._runs.add(run)
        entry.run, entry.error = run, None
        return run

    async def _live(self, entry: _Entry, run: _Run) -> None:
        name, started = entry.model.id, time.monotonic()
        try:
            outcome = await self._come_up(entry.model, run)
            if isinstance(outcome, Refusal):
                log.warning("no load of %s: %s", name, outcome.message)
                self._settle(entry, run, outcome)
                run.up.set_result(outcome)
                return
            log.info("loaded %s in %.1f s", name, time.monotonic() - started)
            run.status = wire.LOADED
            run.up.set_result(outcome)
            code = await outcome.wait_exit()
            log.warning("the engine of %s ended by itself with code %d", name, code)
            words = f"The engine of {name} ended with code {code}; it can be loaded again."
            self._settle(entry, run, None if entry.configured else Refusal(LOAD_FAILED, words))
        finally:
            run.is_ending = True
            if run.engine is not None:
                await run.engine.stop()

    def _over(self, entry: _Entry, run: _Run) -> None:
        self._runs.discard(run)
        self._settle(entry, run, None)
        if not run.up.done():
            name = entry.model.id
            run.up.set_result(Refusal(LOAD_CANCELLED, f"The load of {name} was cancelled."))

    def _settle(self, entry: _Entry, run: _Run, refusal: Refusal | None) -> None:
        """What becomes of a model when its run is over, unless it was taken out of it before."""
        if entry.run is not run:
            return
        entry.run = None
        if refusal is not None and refusal.kind in (LOAD_FAILED, MODEL_NOT_FOUND):
            entry.error = refusal.message
        elif not entry.configured:
            del self._entries[entry.model.id]

    async def _come_up(self, model: LocalModel, run: _Run) -> Engine | Refusal:
        """The engine when it answers, or why it does not."""
        if self._devices.unavailable is not None:
            return Refusal(CUDA_UNAVAILABLE, f"Nothing can load here: {self._devices.unavailable}")
        harness = self._harnesses[model.harness]
        try:
            path = await asyncio.to_thread(locate, self._directories, model.path)
            launch = Launch(model, path, run.devices)
            await self._make_room(
                run, model.id, await asyncio.to_thread(harness.estimate_mb, launch)
            )
            async with asyncio.timeout(self._load_timeout):
                run.engine = await harness.start(launch)
                await run.engine.wait_ready()
        except Refusal as refusal:
            return refusal
        except FileMissing as error:
            return Refusal(MODEL_NOT_FOUND, f"No file for {model.id!r}: {error}.")
        except EngineError as error:
            return Refusal(LOAD_FAILED, f"{model.id} did not load: {error}")
        except TimeoutError:
            bound = f"{self._load_timeout:g} s"
            return Refusal(
                LOAD_FAILED, f"{model.id} did not load within {bound}: [neuron] load_timeout."
            )
        return run.engine

    async def _make_room(self, run: _Run, name: str, needed: int) -> None:
        """Check that the run fits, and unload idle models for it.

        Raises Refusal (insufficient_vram, model_too_large) with the numbers.
        """
        await self._devices.refresh()
        total = self._devices.total_mb
        if needed > total:
            raise Refusal(
                MODEL_TOO_LARGE,
                f"{name} does not fit on this host: it needs {needed} MiB, there are {total} MiB.",
            )
        while (free := self._free_mb(run)) < needed and (leaving := self._leaving(run)):
            # Memory that an unload is about to give back is worth the wait.
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
            await self._devices.refresh()
        if free < needed:
            raise Refusal(
                INSUFFICIENT_VRAM,
                f"{name} does not fit: it needs {needed} MiB; {free} of {total} MiB are free. "
                "Unload another model.",
            )
        run.needed_mb = needed

    def _leaving(self, but: _Run) -> list[asyncio.Task[None]]:
        staying = {entry.run for entry in self._entries.values()} | {but}
        return [run.life for run in self._runs if run not in staying and run.life is not None]

    def _free_mb(self, run: _Run) -> int:
        promised = sum(each.needed_mb for each in self._runs if each.status != wire.LOADED)
        return self._devices.free_mb(self.used_mb, promised, run.devices)

    def _memory_mb(self, run: _Run) -> int:
        """What a run takes; what was measured, but while it loads at least what it was let in for.

        What an engine holds on a GPU can't be measured from here.
        """
        if self._devices.are_gpus:
            return run.needed_mb
        measured = run.engine.memory_mb() if run.engine is not None else 0
        return measured if run.status == wire.LOADED else max(measured, run.needed_mb)

    async def _end(self, run: _Run) -> None:
        """End a run that was taken out of its entry: a load at once, an engine when it is idle."""
        if run.life is None:
            return
        if run.up.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._drain):
                    await run.idle.wait()
        if not run.is_ending:  # a second cancel would cut short the end of the engine
            run.is_ending = True
            run.life.cancel()
        await asyncio.wait({run.life})

    def _described(self, entry: _Entry) -> wire.Model:
        model, run = entry.model, entry.run
        resident = devices = progress = None
        if run is not None:
            devices = list(run.devices) or [each.index for each in self._devices.discovery.devices]
            if run.engine is not None and not self._devices.are_gpus:
                resident = run.engine.memory_mb()
            if run.status != wire.LOADED:
                share = min(resident / run.needed_mb, 0.99) if resident and run.needed_mb else None
                progress = wire.Progress("weights", share and round(share, 2))
        return wire.Model(
            id=model.id,
            status=entry.status,
            harness=model.harness,
            devices=devices,
            vram_used_mb=resident,
            capabilities=self._harnesses[model.harness].capabilities(model),
            limit=wire.Limit(context=model.context),
            progress=progress,
            error=entry.error,
        )


async def _wait_up(run: _Run) -> Engine:
    outcome = await asyncio.shield(run.up)
    if isinstance(outcome, Refusal):
        raise outcome.with_traceback(None)
    return outcome
