"""A fleet that does what it is told, in virtual time: memory fills and empties, loads take their
time, polls come by themselves. What the control floor makes of it is real."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cortexd.config.catalogue import Profile
from cortexd.config.current import Current
from cortexd.config.gateway import Config, Loading
from cortexd.config.units import Duration
from cortexd.control.coldload import LoadTable
from cortexd.control.dispatch import Dispatcher
from cortexd.control.endpoints import Endpoints
from cortexd.control.events import Events
from cortexd.control.loader import Loader
from cortexd.control.operator import Operator
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.residents import Residents
from cortexd.control.room import Room
from cortexd.control.unloads import Unloads
from cortexd.daemon.state import StateFile
from cortexd.errors import Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.routing import Query
from cortexd.fleet.snapshot import Node, Policy
from cortexd.metrics import Metrics
from cortexd.nodes.client import NodeError
from cortexd.wire.neuron import (
    LOADED,
    LOADING,
    UNLOADED,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    Health,
    LoadRequest,
    Model,
    ModelLoad,
    UnloadRequest,
)
from tests.control.clockwork import Clockwork
from tests.control.world import Crashes, now

POLL = 2.0  # seconds


@dataclass
class Machine:
    """A GPU host. vram: MiB of each device. sizes: what models truly take, in all; what is not here
    takes its profile's word. strangers: requests that came past the gateway, by model. slots: how
    many requests each model takes at once, as the machine reports it. reports_late: seconds after
    an unload until its gauges show the memory; frees_late: until it is free."""

    name: str
    vram: tuple[int, ...] = (24000,)
    load_takes: float = 3.0
    unload_takes: float = 0.5
    sizes: dict[str, int] = field(default_factory=dict)
    strangers: dict[str, int] = field(default_factory=dict)
    refuses: dict[str, NodeError] = field(default_factory=dict)
    slots: int | None = None
    reports_late: float = 0.0
    frees_late: float = 0.0
    is_up: bool = True


class Host:
    """The client of one machine, and the machine."""

    def __init__(self, house: House, machine: Machine) -> None:
        self.house = house
        self.machine = machine
        self.resident: dict[str, dict[int, int]] = {}  # model → device → MiB
        self.coming: dict[str, dict[int, int]] = {}
        self.leaving: list[tuple[float, dict[int, int]]] = []  # when it was unloaded, what it held
        self.begun = now()

    @property
    def name(self) -> str:
        return self.machine.name

    def used(self, device: int, late: float | None = None) -> int:
        late = self.machine.frees_late if late is None else late
        left = [taken for at, taken in self.leaving if now() < at + late]
        everything = [*self.resident.values(), *self.coming.values(), *left]
        return sum(taken.get(device, 0) for taken in everything)

    def shown(self, device: int) -> int:
        """MiB that are used, as the machine reports."""
        return self.used(device, max(self.machine.frees_late, self.machine.reports_late))

    async def load(self, request: LoadRequest) -> str:
        model, house = request.model_id, self.house
        house.notes.append(f"load {model} on {self.name}")
        if model in self.machine.refuses:
            raise self.machine.refuses[model]
        devices = request.devices or [0]
        size = self.machine.sizes.get(model) or house.profiles[model].vram_mb or 0
        taken = {device: size // len(devices) for device in devices}
        if any(self.used(d) + mb > self.machine.vram[d] for d, mb in taken.items()):
            house.notes.append(f"out of memory: {model} on {self.name}")
            raise NodeError("/models/load: 507 it does not fit", 507, "insufficient_vram")
        self.coming[model] = taken
        try:
            await asyncio.sleep(self.machine.load_takes)
        finally:
            del self.coming[model]
        self.resident[model] = taken
        return LOADED

    async def unload(self, request: UnloadRequest, timeout: float) -> str:
        model = request.model_id
        if model not in self.resident:
            raise NodeError("/models/unload: 404 it is not here", 404)
        if self.machine.strangers.get(model) and request.if_idle:
            raise NodeError("/models/unload: 409 busy", 409, "busy")
        self.house.notes.append(f"unload {model} from {self.name}")
        if self.house.serving(self.name, model):
            self.house.wrong.append(f"{model} is unloaded from {self.name} while it works")
        await asyncio.sleep(self.machine.unload_takes)
        if self.house.serving(self.name, model):
            self.house.wrong.append(f"{model} works on {self.name} while it is unloaded")
        self.leaving.append((now(), self.resident.pop(model)))
        return UNLOADED

    async def endpoint(self, model: str, timeout: float) -> str:
        if model not in self.resident:
            raise NodeError("/models/x/endpoint: 404 not here", 404)
        return f"http://{self.name}:1"

    def seen(self) -> Observation:
        moment = now()
        if not self.machine.is_up:
            return Observation(moment, moment, failure="no answer")
        models = [
            Model(model, LOADED, devices=sorted(taken), vram_used_mb=sum(taken.values()))
            for model, taken in self.resident.items()
        ]
        models += [Model(model, LOADING) for model in self.coming]
        devices = [
            DeviceHealth(i, vram_used_mb=self.shown(i), vram_free_mb=total - self.shown(i))
            for i, total in enumerate(self.machine.vram)
        ]
        loads = [
            ModelLoad(
                model,
                in_flight=self.house.serving(self.name, model)
                + self.machine.strangers.get(model, 0),
                queue_depth=0,
                max_in_flight=self.machine.slots,
            )
            for model in (*self.resident, *self.coming)
        ]
        health = Health(moment - self.begun, devices=devices, models=loads)
        discovery = Discovery([DeviceInfo(i, total) for i, total in enumerate(self.machine.vram)])
        return Observation(moment, moment, models, health, discovery)


class House:
    """The fleet, one gateway's control floor, and its clients."""

    def __init__(
        self,
        machines: Iterable[Machine],
        profiles: Iterable[Profile],
        *,
        policy: Policy | None = None,
        timeout: float = 600,
    ) -> None:
        self.profiles = {profile.id: profile for profile in profiles}
        self.hosts = {machine.name: Host(self, machine) for machine in machines}
        self.notes: list[str] = []  # what the machines were told to do, in order
        self.wrong: list[str] = []
        self.served: dict[tuple[str, str], int] = {}
        self.registry = Registry(
            [Node(name, f"http://{name}:13131") for name in self.hosts],
            Catalogue.of(tuple(self.profiles.values()), {}),
            Events(),
            unhealthy_after=1,
            policy=policy or Policy(),
            now=now,
        )
        clients: Any = self.hosts
        poller: Any = self
        metrics = self.metrics = Metrics()
        current = Current(Config(loading=Loading(Duration(timeout))))
        reservations = Reservations(self.registry)
        self.unloads = Unloads(self.registry, clients, poller, reservations, metrics, Events())
        room = Room(self.registry, self.unloads, reservations)
        loader = Loader(self.registry, clients, Events(), room, reservations)
        self.table = LoadTable(self.registry, loader, poller, metrics, Events(), current)
        self.operator = Operator(self.registry, self.table, self.unloads, StateFile(None), current)
        self.residents = Residents(self.registry, self.table, self.unloads)
        endpoints = Endpoints(self.registry, clients, current)
        self.dispatcher = Dispatcher(self.registry, self.table, endpoints, reservations, self.nudge)

    # What happens by itself.

    def poll(self, name: str) -> None:
        self.registry.observe(name, self.hosts[name].seen())

    def nudge(self, name: str) -> None:
        asyncio.get_running_loop().call_later(0.01, self.poll, name)

    async def keep_polling(self) -> None:
        while True:
            for name in self.hosts:
                self.poll(name)
            await asyncio.sleep(POLL)

    # Clients.

    def serving(self, node: str, model: str) -> int:
        return self.served.get((node, model), 0)

    async def ask(self, model: str, hold: float = 0.0) -> str:
        """The node that served it, or the code of the refusal."""
        try:
            route = await self.dispatcher.route(Query(model))
        except Refusal as refusal:
            return refusal.kind.code
        key = (route.node, model)
        self.served[key] = self.served.get(key, 0) + 1
        if model not in self.hosts[route.node].resident:
            self.wrong.append(f"{model} is asked for on {route.node}, where it is not")
        try:
            await asyncio.sleep(hold)
        finally:
            self.served[key] -= 1
            self.registry.note_success(route.node, model)
            self.dispatcher.confirm(route, served=True)
            route.lease.release()
        return route.node

    def asking(self, model: str, hold: float = 0.0) -> asyncio.Task[str]:
        return asyncio.get_running_loop().create_task(self.ask(model, hold), name="client")

    def is_empty(self) -> bool:
        """Nothing is under way, and nothing is remembered of what was."""
        ledger = self.registry.ledger
        return not (
            ledger.in_flight or ledger.loading or ledger.turns or ledger.gates or ledger.promises
        ) and not len(self.table)


def live(house: Callable[[], House], story: Callable[[House], Awaitable[None]]) -> House:
    """Let a story happen to a house, and hold what must be true after every story."""

    async def run() -> House:
        built, loop = house(), asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: built.wrong.append(str(context)))
        crashes = Crashes(built.wrong)
        logging.getLogger("cortexd").addHandler(crashes)
        polling = loop.create_task(built.keep_polling())
        try:
            await asyncio.sleep(0.1)
            built.table.start()
            built.residents.start()
            await story(built)
            assert built.wrong == []
        finally:
            logging.getLogger("cortexd").removeHandler(crashes)
            polling.cancel()
            await built.residents.close()
            await built.table.close()
            await built.unloads.close()
        return built

    with asyncio.Runner(loop_factory=Clockwork) as runner:
        return runner.run(run())
