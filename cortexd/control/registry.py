"""The keeper of the fleet's picture: holds the current snapshot and is its only writer.

Readers take `snapshot` and keep the reference as long as they like. Everything here is
synchronous; only the waiters await.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import msgspec

from cortexd.control.events import Events, Kind
from cortexd.control.statelog import StateLog
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.choice import is_over, is_suspect, worsened
from cortexd.fleet.observe import Observation, forgotten, observed, told
from cortexd.fleet.sanity import sane, standing
from cortexd.fleet.snapshot import (
    DEFAULT_POLICY,
    Ledger,
    Node,
    Policy,
    Replica,
    Snapshot,
    with_node,
)
from cortexd.wire.neuron import LOADED


class Lease:
    """One request's claim on a replica, from the choice to the last byte; released once."""

    __slots__ = ("_ledger", "_now", "key")

    def __init__(
        self, ledger: Ledger, node: str, model: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.key = (node, model)
        self._ledger: Ledger | None = ledger
        self._now = now
        ledger.in_flight[self.key] = ledger.in_flight.get(self.key, 0) + 1
        ledger.last_access[self.key] = now()

    def release(self) -> None:
        """Give the claim back; a second call does nothing."""
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            return
        if self.key in ledger.last_access:  # else the model is gone, and what it left behind
            ledger.last_access[self.key] = self._now()
        left = ledger.in_flight[self.key] - 1
        if left:
            ledger.in_flight[self.key] = left
        else:
            del ledger.in_flight[self.key]
        if (turn := ledger.turns.get(self.key)) is not None:
            turn()


class Registry:
    """The nodes of a configuration and what is known of them. `now`: monotonic seconds."""

    def __init__(
        self,
        nodes: Iterable[Node],
        catalogue: Catalogue,
        events: Events,
        *,
        unhealthy_after: int,
        policy: Policy = DEFAULT_POLICY,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        snapshot = Snapshot(catalogue=catalogue, policy=policy)
        for node in nodes:
            snapshot = with_node(snapshot, node)
        self.snapshot = msgspec.structs.replace(snapshot, settled=not snapshot.nodes)
        self.ledger = Ledger()
        self._events = events
        self._state_log = StateLog()
        self._now = now
        self._unhealthy_after = unhealthy_after
        self._changed: asyncio.Event = asyncio.Event()
        self._polled: dict[str, asyncio.Event] = {}
        self._sent: dict[str, float] = {}  # the last poll of each node that came back
        self._gates: Counter[tuple[str, str]] = Counter()
        # Told of every observation, when it has been taken in.
        self.watchers: list[Callable[[str, Observation], None]] = []

    def observe(self, name: str, seen: Observation) -> Node:
        """Take in one poll of a node; returns the node as it now stands.

        What can't be true is not believed; the operator is told once.
        """
        before = self.snapshot.nodes[name]
        seen, complaints = sane(seen, before.hardware)
        after = observed(
            before, seen, self.snapshot.catalogue, unhealthy_after=self._unhealthy_after
        )
        nonsense = standing(before.nonsense, complaints, seen)
        if nonsense is not before.nonsense:
            after = msgspec.structs.replace(after, nonsense=nonsense)
        self._state_log.look(before, after, seen.received)
        if before.healthy != after.healthy:
            kind: Kind = "node_up" if after.healthy else "node_down"
            self._events.tell(kind, node=name, message=after.trouble)
        self._put(after)
        self._keep_books(after, is_fresh=seen.health is not None)
        self._sent[name] = seen.sent
        for watcher in self.watchers:
            watcher(name, seen)
        if (waiting := self._polled.pop(name, None)) is not None:
            waiting.set()
        return after

    def tell(self, name: str, model: str, status: str) -> None:
        """State what we know of a model on a node from our own act, as of now."""
        at = asyncio.get_running_loop().time()
        self._put(told(self.snapshot.nodes[name], model, status, at))

    def forget(self, name: str, model: str) -> None:
        """Drop a model that a node turned out not to have; its next poll says what is true."""
        self._put(forgotten(self.snapshot.nodes[name], model))

    def settle(self) -> None:
        """Stop waiting for nodes that have not answered their first poll."""
        if not self.snapshot.settled:
            self.snapshot = msgspec.structs.replace(self.snapshot, settled=True)
            self.wake()

    def replica(self, node: str, model: str) -> Replica | None:
        """The model on that node, as routing sees it now."""
        for replica in self.snapshot.replicas.get(model, ()):
            if replica.node == node:
                return replica
        return None

    def lease(self, node: str, model: str) -> Lease:
        """Claim a replica for one request."""
        return Lease(self.ledger, node, model, self._now)

    def note_success(self, node: str, model: str) -> None:
        """A replica has answered a request: what it failed before is forgiven."""
        key, ledger = (node, model), self.ledger
        if ledger.faults:
            ledger.faults.pop(key, None)
        if key not in ledger.served:
            info = self.snapshot.nodes[node].models.get(model)
            if info is not None and info.status == LOADED:
                ledger.served[key] = self._now()

    def note_fault(self, node: str, model: str, *, suspect: bool) -> bool:
        """A replica has failed a request. suspect: it may fail any other as well.

        Returns whether that is news.
        """
        if model not in self.snapshot.nodes[node].models:
            return False
        now, faults, key = self._now(), self.ledger.faults, (node, model)
        before = faults.get(key)
        faults[key] = worsened(before, now, suspect=suspect)
        return suspect and not is_suspect(before, now)

    def forgive(self, node: str, model: str) -> None:
        """What failed was not that replica, or is not any more."""
        self.ledger.faults.pop((node, model), None)

    @contextmanager
    def gate(self, node: str, model: str) -> Iterator[None]:
        """Send nothing new to a replica that is unloaded or is going to be; who wants it waits,
        and decides again after. Several may hold it; the last one opens it."""
        self._gates[node, model] += 1
        self.ledger.gates.setdefault(model, set()).add(node)
        self.wake()
        try:
            yield
        finally:
            self._gates[node, model] -= 1
            if not self._gates[node, model]:
                del self._gates[node, model]
                self.ledger.gates[model].discard(node)
                if not self.ledger.gates[model]:
                    del self.ledger.gates[model]
                self.wake()

    async def wait_changed(self) -> None:
        """Until anything that routing reads has changed."""
        await self._changed.wait()

    async def wait_polled(self, name: str, since: float) -> None:
        """Until a next observation of a node comes in, good or bad, that was not sent before
        `since`."""
        while True:
            await self._polled.setdefault(name, asyncio.Event()).wait()
            if self._sent[name] >= since:
                return

    def _put(self, node: Node) -> None:
        before, after = self.snapshot, with_node(self.snapshot, node)
        if not after.settled and all(known.polled for known in after.nodes.values()):
            after = msgspec.structs.replace(after, settled=True)
        self.snapshot = after
        self._drop_unloaded(before.nodes[node.name], node)
        if (
            after.replicas is not before.replicas
            or after.settled != before.settled
            or _is_routed_otherwise(before.nodes[node.name], node)
        ):
            self.wake()

    def _keep_books(self, node: Node, *, is_fresh: bool) -> None:
        """After a poll: which of our requests its report can have counted, and faults that are
        history by now."""
        ledger, now = self.ledger, self._now()
        for model in node.models:
            key = (node.name, model)
            if is_fresh:
                if (ours := ledger.in_flight.get(key)) is not None:
                    ledger.counted[key] = ours
                else:
                    ledger.counted.pop(key, None)
            if ledger.faults and (fault := ledger.faults.get(key)) and is_over(fault, now):
                del ledger.faults[key]

    def _drop_unloaded(self, before: Node, after: Node) -> None:
        """What is remembered of a model ends with its stay."""
        if before.models is after.models and before.epoch == after.epoch:
            return
        ledger = self.ledger
        for model in before.models:
            key, info = (after.name, model), after.models.get(model)
            if info is None:
                for kept in (
                    ledger.counted,
                    ledger.faults,
                    ledger.last_access,
                    ledger.load_seconds,
                ):
                    kept.pop(key, None)
            if info is None or info.status != LOADED or before.epoch != after.epoch:
                ledger.served.pop(key, None)

    def wake(self) -> None:
        """Something that routing reads has changed, here or in the ledger."""
        # The present waiters wake; later ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()


def _is_routed_otherwise(before: Node, after: Node) -> bool:
    return before.is_available != after.is_available or before.hardware is not after.hardware
