"""What the gateway knows: the real snapshot and ledger, kept as `cortexd.control` keeps them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import msgspec

from bench.sim.clock import Clock
from bench.sim.machine import Machine
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, forgotten, observed, told
from cortexd.fleet.snapshot import (
    ANYWHERE,
    FootprintKey,
    Ledger,
    Node,
    Policy,
    Snapshot,
    with_node,
)
from cortexd.wire.neuron import LOADED

INTERVAL = 2.0  # seconds between two polls of a node, ± JITTER of it
JITTER = 0.1
TRIP = 0.005  # seconds on the wire, each way

Key = tuple[str, str]


class Picture:
    """Snapshot and ledger, as old as the last polls. `changed` is called after each of them."""

    def __init__(
        self,
        clock: Clock,
        machines: Mapping[str, Machine],
        catalogue: Catalogue,
        policy: Policy,
        draw: random.Random,
    ) -> None:
        self.clock = clock
        self.machines = machines
        self.ledger = Ledger()
        self.polled: dict[str, float] = {}  # when the poll was sent that the node is known by
        self.changed: Callable[[], None] = lambda: None
        snapshot = Snapshot(catalogue=catalogue, policy=policy)
        for name, machine in machines.items():
            node = Node(name, f"http://{name}:13131", weight=machine.host.weight)
            snapshot = with_node(snapshot, node)
        self.snapshot = snapshot
        for name in machines:
            self.nudge(name)
            clock.every(
                lambda: INTERVAL * draw.uniform(1 - JITTER, 1 + JITTER),
                partial(self.nudge, name),
            )

    # Polls.

    def nudge(self, name: str) -> None:
        """Poll a node now."""
        sent = self.clock.now
        self.clock.after(TRIP, lambda: self._look(name, sent))

    def _look(self, name: str, sent: float) -> None:
        machine = self.machines[name]
        models, health, discovery = machine.models(), machine.health(), machine.discovery()

        def answer() -> None:
            now = self.clock.now
            seen = Observation(sent, now, models=models, health=health, discovery=discovery)
            self._observe(name, seen)

        self.clock.after(TRIP, answer)

    def _observe(self, name: str, seen: Observation) -> None:
        snapshot, ledger = self.snapshot, self.ledger
        node = observed(snapshot.nodes[name], seen, snapshot.catalogue, unhealthy_after=3)
        self.polled[name] = seen.sent
        self._drop_traces(node)
        self._put(node)
        if all(known.polled for known in self.snapshot.nodes.values()):
            self.snapshot = msgspec.structs.replace(self.snapshot, settled=True)
        for model in node.models:
            if ours := ledger.in_flight.get((name, model)):
                ledger.counted[name, model] = ours
            else:
                ledger.counted.pop((name, model), None)
        for key, promise in list(ledger.promises.items()):
            if key[0] == name and promise.ended is not None and promise.ended <= seen.sent:
                del ledger.promises[key]
        self._measure(node)
        self.changed()

    def _measure(self, node: Node) -> None:
        """What a model was seen to take is better than what the catalogue says."""
        profiles = self.snapshot.catalogue.profiles
        for model, info in node.models.items():
            if info.status == LOADED and info.vram_used_mb:
                profile = profiles[model]
                of = model, profile.harness, profile.quant, profile.min_devices
                here, anywhere = FootprintKey(*of, node.name), FootprintKey(*of, ANYWHERE)
                footprints, used = self.ledger.footprints, info.vram_used_mb
                footprints[here] = used
                footprints[anywhere] = max(used, footprints.get(anywhere, 0.0))

    # What we know from our own acts.

    def tell(self, name: str, model: str, status: str) -> None:
        """State what we know of a model on a node from our own act."""
        self._put(told(self.snapshot.nodes[name], model, status, self.clock.now))

    def forget(self, name: str, model: str) -> None:
        """Drop a model that is there no more."""
        node = forgotten(self.snapshot.nodes[name], model)
        self._drop_traces(node)
        self._put(node)

    def claim(self, key: Key) -> None:
        """A request goes to a replica."""
        ledger = self.ledger
        ledger.in_flight[key] = ledger.in_flight.get(key, 0) + 1
        ledger.last_access[key] = self.clock.now

    def release(self, key: Key) -> None:
        """It has ended."""
        ledger = self.ledger
        ledger.last_access[key] = self.clock.now
        ledger.in_flight[key] -= 1
        if not ledger.in_flight[key]:
            del ledger.in_flight[key]

    def gate(self, key: Key) -> None:
        """Send nothing new there."""
        node, model = key
        self.ledger.gates.setdefault(model, set()).add(node)

    def open(self, key: Key) -> None:
        """The other way round."""
        node, model = key
        gates = self.ledger.gates.get(model, set())
        gates.discard(node)
        if not gates:
            self.ledger.gates.pop(model, None)

    def is_gated(self, key: Key) -> bool:
        """Whether it is on its way out."""
        return self.ledger.is_gated(*key)

    def is_idle(self, key: Key) -> bool:
        """Whether nothing of ours runs there, nor anything by the last report."""
        node = self.snapshot.nodes[key[0]]
        return not self.ledger.in_flight.get(key) and not node.busy.get(key[1])

    def held(self, key: Key) -> dict[int, float]:
        """Device → MiB that a resident model holds, by its node's last report."""
        info = self.snapshot.nodes[key[0]].models[key[1]]
        devices = info.devices or []
        return {device: (info.vram_used_mb or 0.0) / len(devices) for device in devices}

    def free(self, name: str, devices: Iterable[int]) -> dict[int, float]:
        """MiB free on these devices, by the node's last report."""
        health = self.snapshot.nodes[name].health
        gauges = {g.index: g.vram_free_mb or 0.0 for g in (health and health.devices) or ()}
        return {device: gauges.get(device, 0.0) for device in devices}

    def _drop_traces(self, node: Node) -> None:
        """Of models that are there no more: when they come back it is as if for the first time."""
        for model in self.snapshot.nodes[node.name].models:
            if model not in node.models:
                for kept in (self.ledger.served, self.ledger.last_access, self.ledger.counted):
                    kept.pop((node.name, model), None)

    def _put(self, node: Node) -> None:
        self.snapshot = with_node(self.snapshot, node)
