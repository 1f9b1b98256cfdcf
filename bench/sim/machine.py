"""A GPU host and its neuron as they truly are; the gateway sees only what a poll reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.sim.clock import Clock
from bench.sim.engine import Engine, Job
from bench.sim.things import Host, Sort
from cortexd.wire.neuron import (
    LOADED,
    LOADING,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    Health,
    LoadRequest,
    Model,
    ModelLoad,
    Progress,
)

ENGINE_START = 2.0  # seconds before the first weight is read
STEPS = 10  # in which a load takes its memory
UNLOAD = 1.0  # seconds until the memory is free


class Load:
    """Weights on their way into devices. `done(words)`: None when it is resident."""

    __slots__ = ("devices", "done", "share", "sort", "step")

    def __init__(
        self, sort: Sort, devices: tuple[int, ...], done: Callable[[str | None], None]
    ) -> None:
        self.sort = sort
        self.devices = devices
        self.done = done
        self.share = sort.vram / len(devices)  # MiB on each device
        self.step = 0


class Machine:
    """One host. Memory is taken as a load goes on, so that two of them can meet in the middle."""

    def __init__(self, clock: Clock, host: Host, sorts: Mapping[str, Sort]) -> None:
        self.host = host
        self.engines: dict[str, Engine] = {}
        self.loads: dict[str, Load] = {}
        self.free = [float(total) for total in host.devices]
        self.free[0] -= host.desktop
        self.out_of_memory = self.unloads = self.killed = 0
        self._leaving: set[str] = set()
        self._clock = clock
        self._sorts = sorts

    # What its neuron answers.

    def discovery(self) -> Discovery:
        """GET /discovery."""
        return Discovery([DeviceInfo(at, total) for at, total in enumerate(self.host.devices)])

    def health(self) -> Health:
        """GET /health."""
        gauges = [
            DeviceHealth(at, total - self.free[at], self.free[at])
            for at, total in enumerate(self.host.devices)
        ]
        loads = [
            ModelLoad(name, len(engine.running), len(engine.queue), engine.sort.slots)
            for name, engine in self.engines.items()
        ]
        return Health(uptime_secs=self._clock.now, devices=gauges, models=loads)

    def models(self) -> list[Model]:
        """GET /models."""
        return [
            Model(name, LOADED, devices=list(engine.devices), vram_used_mb=engine.sort.vram)
            for name, engine in self.engines.items()
        ] + [
            Model(
                name,
                LOADING,
                devices=list(load.devices),
                progress=Progress("weights", load.step / STEPS),
            )
            for name, load in self.loads.items()
        ]

    def serve(self, model: str, job: Job) -> bool:
        """POST /v1/…; False: it is not here."""
        engine = self.engines.get(model)
        if engine is None or model in self._leaving:
            return False
        engine.submit(job)
        return True

    def load(self, spec: LoadRequest, done: Callable[[str | None], None]) -> None:
        """POST /models/load."""
        devices = tuple(spec.devices or [])
        load = Load(self._sorts[spec.model_id], devices, done)
        if spec.model_id in self.engines or spec.model_id in self.loads:
            raise AssertionError(f"{spec.model_id} is loaded twice on {self.host.name}")
        self.loads[spec.model_id] = load
        self._clock.after(ENGINE_START, lambda: self._go_on(load))

    def unload(self, model: str, if_idle: bool, done: Callable[[bool], None]) -> None:
        """POST /models/unload. `done(False)`: it is busy."""
        engine = self.engines.get(model)
        if engine is not None and engine.is_busy and if_idle:
            self._clock.after(0, lambda: done(False))
            return
        if engine is not None:
            self._leaving.add(model)
            if engine.is_busy:
                self.killed += 1
                for job in engine.kill():
                    job.done(True)
        self._clock.after(UNLOAD, lambda: self._drop(model, done))

    # What happens inside.

    def _drop(self, model: str, done: Callable[[bool], None]) -> None:
        engine = self.engines.pop(model, None)
        self._leaving.discard(model)
        if engine is not None:
            self.unloads += 1
            self._give(engine.devices, engine.sort.vram / len(engine.devices))
            self._meet()
        done(True)

    def _go_on(self, load: Load) -> None:
        portion = load.share / STEPS
        if any(self.free[device] < portion for device in load.devices):
            self.out_of_memory += 1
            self._give(load.devices, portion * load.step)
            del self.loads[load.sort.name]
            load.done("CUDA error: out of memory")
            return
        self._give(load.devices, -portion)
        load.step += 1
        if load.step == STEPS:
            del self.loads[load.sort.name]
            self.engines[load.sort.name] = Engine(self._clock, self.host, load.sort, load.devices)
            self._meet()
            load.done(None)
            return
        rate = self.host.disk / len(self.loads)
        self._clock.after(load.sort.weights / STEPS / rate, lambda: self._go_on(load))

    def _give(self, devices: tuple[int, ...], share: float) -> None:
        for device in devices:
            self.free[device] += share
            # Tenths of a share do not add up to exactly one.
            if not -0.01 <= self.free[device] <= self.host.devices[device] + 0.01:
                raise AssertionError(f"{self.host.name} has {self.free[device]} MiB free")

    def _meet(self) -> None:
        for engine in self.engines.values():
            engine.neighbours = [
                other
                for other in self.engines.values()
                if other is not engine and not set(other.devices).isdisjoint(engine.devices)
            ]
