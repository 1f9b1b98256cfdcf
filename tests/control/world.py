"""The real control floor between fakes: nodes that answer what a test says, when it says so, and
clients that come and go. A test is a list of steps; `World.check` is what holds between them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cortexd.config.current import Current
from cortexd.config.gateway import Config, Loading
from cortexd.config.units import Duration
from cortexd.control.coldload import TICK, LoadTable
from cortexd.control.dispatch import Dispatcher
from cortexd.control.endpoints import Endpoints
from cortexd.control.events import Events
from cortexd.control.loader import Loader
from cortexd.control.operator import Operator
from cortexd.control.registry import Lease, Registry
from cortexd.control.reservations import Reservations
from cortexd.control.residents import Residents
from cortexd.control.room import Room
from cortexd.control.unloads import Unloads
from cortexd.daemon.state import StateFile
from cortexd.errors import Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.routing import Query, Wait, decide
from cortexd.fleet.snapshot import Node, Replica
from cortexd.metrics import Metrics
from cortexd.nodes.client import NodeError
from cortexd.wire.neuron import (
    FAILED,
    LOADED,
    LOADING,
    RELOADING,
    UNLOADED,
    DeviceInfo,
    Discovery,
    Health,
    LoadRequest,
    Model,
    ModelLoad,
    Progress,
    Servable,
    UnloadRequest,
)
from tests.control.clockwork import Clockwork
from tests.control.steps import (
    Answer,
    Ask,
    Cancel,
    Close,
    Leave,
    Operate,
    Pass,
    Poll,
    Serves,
    Setting,
    Step,
    Turn,
)

GPU = Discovery([DeviceInfo(0, 24000)])
INSTANT = 1e-6  # seconds, in which all who can go on do
METRICS = Metrics()
USUAL = Setting()


@dataclass(eq=False)
class Post:
    """A load under way, in the node's eyes."""

    node: str
    model: str
    answer: asyncio.Future[str] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Neuron:
    """The client of one node, of which the test is the other side."""

    def __init__(self, world: World, name: str, takes: tuple[int, int] | None) -> None:
        self.world = world
        self.name = name
        self.takes = takes
        self.serves = Serves(name)
        self.unloading: list[str] = []
        self.started = self.polled = now() - 1000

    async def load(self, request: LoadRequest) -> str:
        world, post = self.world, Post(self.name, request.model_id)
        if any(other.model == post.model for other in world.posts):
            world.wrong.append(f"a second load of {post.model} is begun")
        if post.model in self.unloading:
            world.wrong.append(f"{post.model} is loaded while it is unloaded")
        world.posts.append(post)
        world.loads[post.node, post.model] += 1
        try:
            return await post.answer
        finally:
            world.posts.remove(post)

    async def unload(self, request: UnloadRequest, timeout: float) -> str:
        if request.if_idle and self.world.registry.ledger.in_flight.get(
            (self.name, request.model_id)
        ):
            self.world.wrong.append(f"{request.model_id} is evicted from {self.name} at work")
        self.unloading.append(request.model_id)
        try:
            await asyncio.sleep(self.serves.takes)
            if self.serves.status != 200:
                raise NodeError("it does not want to", 500)
        finally:
            self.unloading.remove(request.model_id)
        return UNLOADED

    async def endpoint(self, model: str, timeout: float) -> str:
        await asyncio.sleep(self.serves.takes)
        if self.serves.status != 200:
            raise NodeError("not here", self.serves.status)
        return f"http://{self.name}:1"

    def seen(self, poll: Poll) -> Observation:
        moment = now()
        sent = max(self.polled, moment - poll.age)
        self.polled = moment
        if poll.fails:
            return Observation(sent, moment, failure="no answer")
        if poll.restarted:
            self.started = moment
        progress = None if poll.fraction is None else Progress("weights", poll.fraction)
        servable = None if poll.servable else Servable(ok=False, reason="broken")
        models = [
            Model(model, status, progress=progress, servable=servable)
            for model, status in poll.status
        ]
        loads = [
            ModelLoad(profile.id, max_in_flight=self.takes[0], max_queue_depth=self.takes[1])
            for profile in self.world.setting.profiles
            if self.takes
        ]
        return Observation(sent, moment, models, Health(moment - self.started, models=loads), GPU)


class WatchedRegistry(Registry):
    """Says when a claim is made that should not be."""

    wrong: list[str]

    def lease(self, node: str, model: str) -> Lease:
        key, replica = (node, model), self.replica(node, model)
        if replica is None or not self._may_claim(replica):
            self.wrong.append(f"a claim on {model} on {node}, which is {replica}")
        if node in self.ledger.gates.get(model, ()):
            self.wrong.append(f"a claim on {model} on {node}, which is being unloaded")
        if key in self.ledger.turns and not self.snapshot.nodes[node].healthy:
            self.wrong.append(f"a turn at {node}, which is down")
        task = asyncio.current_task()
        in_turn = key in self.ledger.turns or (task and task.get_name().startswith("load"))
        if in_turn and replica is not None and replica.status != UNLOADED:
            health = self.snapshot.nodes[node].health
            for load in (health and health.models) or ():
                most = (load.max_in_flight or 0) + (load.max_queue_depth or 0)
                if load.id == model and most and self.ledger.in_flight.get(key, 0) >= most:
                    self.wrong.append(f"{node} is sent more of {model} than it takes")
        return super().lease(node, model)

    def _may_claim(self, replica: Replica) -> bool:
        if replica.status == FAILED:  # its node tries it again, once the back-off has ended
            failure = self.ledger.failures.get((replica.node, replica.model))
            is_over = failure is None or failure.until <= now()
            return is_over and replica.model not in self.snapshot.catalogue.profiles
        return replica.status in {LOADED, RELOADING, UNLOADED}


class Crashes(logging.Handler):
    """Notes the tasks that crash."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._wrong = wrong

    def emit(self, record: logging.LogRecord) -> None:
        self._wrong.append(record.getMessage() + f": {record.exc_info and record.exc_info[1]!r}")


class World:
    """One fleet, one gateway's control floor, and its clients."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.wrong: list[str] = []
        self.posts: list[Post] = []
        self.loads: Counter[tuple[str, str]] = Counter()
        self.clients: list[asyncio.Task[str]] = []
        self.ended: list[str] = []
        self.is_closed = False
        self.neurons = {name: Neuron(self, name, takes) for name, takes in setting.takes}
        self.registry = WatchedRegistry(
            [Node(name, f"http://{name}:13131") for name in self.neurons],
            Catalogue.of(setting.profiles, {}),
            Events(),
            unhealthy_after=1,
            now=now,
        )
        self.registry.wrong = self.wrong
        fakes: dict[str, Any] = self.neurons  # type: ignore[assignment]
        poller: Any = self
        loading = Loading(Duration(setting.timeout), max_waiting=setting.max_waiting)
        current = Current(Config(loading=loading))
        reservations = Reservations(self.registry)
        self.unloads = Unloads(self.registry, fakes, poller, reservations, METRICS, Events())
        room = Room(self.registry, self.unloads, reservations)
        self.table = LoadTable(
            self.registry,
            Loader(self.registry, fakes, Events(), room, reservations),
            poller,
            METRICS,
            Events(),
            current,
        )
        self.operator = Operator(
            self.registry,
            self.table,
            self.unloads,
            StateFile(None),
            current,
        )
        self.residents = Residents(self.registry, self.table, self.unloads)
        endpoints = Endpoints(self.registry, fakes, current)
        self.dispatcher = Dispatcher(self.registry, self.table, endpoints, reservations, self.nudge)

    def nudge(self, node: str) -> None:
        """As the poller; polls come when the test says so."""

    # Clients.

    async def _ask(self, ask: Ask) -> str:
        arrived, busy, since = now(), ask.busy, None
        try:
            while True:
                route = await self.dispatcher.route(Query(ask.model), since=since)
                try:
                    await asyncio.sleep(ask.hold)
                finally:
                    self.dispatcher.confirm(route, served=ask.served and not busy)
                    route.lease.release()
                if not busy or route.route != "cold":
                    return f"served by {route.node}" + " at last" * (busy != ask.busy)
                busy, since = False, arrived
        except Refusal as refusal:
            return refusal.kind.code

    async def _operate(self, step: Operate) -> str:
        try:
            await self.operator.load(step.model, step.node)
        except Refusal as refusal:
            return refusal.kind.code
        return "operated"

    async def _cancel(self, model: str) -> str:
        try:
            gone = await self.operator.unload(model, force=True)
        except Refusal:
            return "not cancelled"
        return "cancelled" if gone else "not there"

    def _comes(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="client")
        self.clients.append(task)
        task.add_done_callback(self._goes)

    def _goes(self, task: asyncio.Task[str]) -> None:
        self.clients.remove(task)
        if task.cancelled():
            self.ended.append("left")
        elif (error := task.exception()) is not None:
            self.wrong.append(f"a request crashed: {error!r}")
        else:
            self.ended.append(task.result())

    # Steps.

    async def take(self, step: Step) -> None:
        match step:
            case Ask():
                self._comes(self._ask(step))
            case Leave(which) if self.clients:
                self.clients[which % len(self.clients)].cancel()
            case Answer(which, how) if self.posts:
                _answer(self.posts[which % len(self.posts)], how)
            case Poll():
                self._observe(step)
            case Serves(node):
                self.neurons[node].serves = step
            case Operate():
                self._comes(self._operate(step))
            case Cancel(model):
                self._comes(self._cancel(model))
            case Turn(turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case Pass(seconds):
                await asyncio.sleep(INSTANT)
                self.check()
                await asyncio.sleep(seconds)
            case Close() if not self.is_closed:
                await self.table.close()
                await self.residents.close()
                await self.unloads.close()
                self.is_closed = True

    def _observe(self, poll: Poll) -> None:
        told = self.registry.snapshot.nodes[poll.node].told
        seen = self.neurons[poll.node].seen(poll)
        after = self.registry.observe(poll.node, seen)
        for model, fact in told.items():
            if fact.at > seen.sent and after.models[model].status != fact.status:
                self.wrong.append(f"a poll overrules that {model} was told {fact.status}")

    # What holds.

    def check(self) -> None:
        """Between the steps, when nobody can go on by himself."""
        table, registry, ledger = self.table, self.registry, self.registry.ledger
        waiting = [client for client in self.clients if _is_in(client, "Line.wait")]
        serving = [client for client in self.clients if _is_served(client)]
        lines = [line for _, line in table._lines()]
        assert self.wrong == []
        assert sum(map(len, lines)) == len(waiting), (lines, self.clients)
        assert sum(ledger.in_flight.values()) == len(serving), (ledger, self.clients)
        assert table.longest_wait() <= self.setting.timeout + TICK + 0.01
        for line in lines:
            since = list(line._waiting.values())
            assert since == sorted(since), "first come, first served"
        for post in self.posts:
            assert ledger.loading.get(post.model) == post.node, (post, ledger)
        for entry in table._entries.values():
            decision = decide(Query(entry.model), registry.snapshot, ledger, now())
            assert entry.is_ours or isinstance(decision, Wait), f"{entry} waits for nothing"
        if self.is_closed:
            assert not waiting
            assert not len(table)
            assert not table._tasks

    async def end(self) -> None:
        """Time passes all bounds; what is under way is settled: nothing must be left."""
        await self.take(Pass(5 * self.setting.timeout + 300))
        assert not self.clients, [client.get_stack() for client in self.clients]
        for post in self.posts:
            _answer(post, 500)
        await asyncio.sleep(INSTANT)
        for _ in range(2):  # who is told of an end by the first one is settled by the second
            for name in self.neurons:
                self._observe(Poll(name))
            await self.take(Pass(2 * TICK))
        self.check()
        ledger, table = self.registry.ledger, self.table
        assert not ledger.in_flight
        assert not ledger.loading
        assert not ledger.turns
        assert not ledger.gates
        assert not ledger.promises
        assert not table._loader._room._insisting
        assert not len(table)
        assert not table._loads
        assert len(table._tasks) == (not self.is_closed)
        await self.take(Close())
        self.check()


def play(*steps: Step, setting: Setting = USUAL) -> World:
    """What is left when these steps were taken and everything has ended."""
    with asyncio.Runner(loop_factory=Clockwork) as runner:
        return runner.run(_play(setting, steps))


async def _play(setting: Setting, steps: tuple[Step, ...]) -> World:
    world, loop = World(setting), asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: world.wrong.append(str(context)))
    crashes = Crashes(world.wrong)
    logging.getLogger("cortexd").addHandler(crashes)
    try:
        if setting.polled:
            for name in world.neurons:
                await world.take(Poll(name))
        world.table.start()
        for step in steps:
            await world.take(step)
        await world.end()
    finally:
        logging.getLogger("cortexd").removeHandler(crashes)
    return world


def now() -> float:
    return asyncio.get_running_loop().time()


def _answer(post: Post, how: str | int) -> None:
    if post.answer.done():
        return
    if how in (LOADED, LOADING):
        post.answer.set_result(str(how))
    else:
        post.answer.set_exception(NodeError(f"/models/load: {how}", how if how != "lost" else None))


def _is_in(task: asyncio.Task[str], name: str) -> bool:
    frame: Any = task.get_coro()
    while hasattr(frame, "cr_code"):
        if frame.cr_code.co_qualname == name:
            return True
        frame = frame.cr_await
    return False


def _is_served(task: asyncio.Task[str]) -> bool:
    """With a claim: where it finds the endpoint, or at the node."""
    return _is_in(task, "Dispatcher._claimed") or (
        _is_in(task, "World._ask")
        and _is_in(task, "sleep")
        and not _is_in(task, "Dispatcher.route")
    )
