"""The keeper of the fleet's picture: holds the current snapshot and is its only writer.

Readers take `snapshot` and keep the reference as long as they like. Everything here is
synchronous; only the waiters await.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from cortexd.control.events import Events, Kind
from cortexd.control.statelog import StateLog
from cortexd.daemon.state import fingerprint
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
    without_node,
)
from cortexd.wire.neuron import LOADED

log = logging.getLogger(__name__)


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
        self._state_log.look(before, after, seen.received, self.snapshot.catalogue.aliases)
        if before.healthy != after.healthy:
            kind: Kind = "node_up" if after.healthy else "node_down"
            self._events.tell(kind, node=name, message=after.trouble)
        self._put(after)
        self._keep_books(after, is_fresh=seen.models is not None and seen.health is not None)
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

    def untell(self, name: str, model: str) -> None:
        """Drop the gateway's own word on a model's status: the node's next report decides."""
        node = self.snapshot.nodes.get(name)
        if node is not None and model in node.told:
            told_of = {key: fact for key, fact in node.told.items() if key != model}
            self._put(msgspec.structs.replace(node, told=told_of))

    def forget(self, name: str, model: str) -> None:
        """Drop a model that a node turned out not to have; its next poll says what is true."""
        self._put(forgotten(self.snapshot.nodes[name], model))

    def reconfigure(
        self,
        nodes: Iterable[Node],
        catalogue: Catalogue,
        *,
        fresh: Collection[str],
        unhealthy_after: int,
        policy: Policy,
    ) -> None:
        """Take in another configuration, as one change.

        fresh: of the nodes, those of which nothing holds that was known. Nodes that are not there
        any more are leaving: they get nothing new, and somebody has to `drop` them in the end.
        """
        before = self.snapshot
        after = msgspec.structs.replace(before, catalogue=catalogue, policy=policy)
        wanted = {node.name: node for node in nodes}
        for name, node in wanted.items():
            known, taken = before.nodes.get(name), node
            if known is not None and name in fresh:
                self._forget_all(name)
                taken = msgspec.structs.replace(node, epoch=known.epoch + 1)
            elif known is not None:
                taken = msgspec.structs.replace(
                    known, weight=node.weight, reserve_mb=node.reserve_mb
                )
            after = with_node(after, taken)
        for name in before.nodes.keys() - wanted.keys():
            leaves = msgspec.structs.replace(before.nodes[name], draining=True, leaving=True)
            after = with_node(after, leaves)
        is_settled = before.settled and not fresh
        is_settled = is_settled or all(node.polled for node in after.nodes.values())
        self.snapshot = msgspec.structs.replace(after, settled=is_settled)
        self._unhealthy_after = unhealthy_after
        self._forget_profiles(before.catalogue, catalogue)
        self.ledger.unloadable.clear()  # an operator who reloads may have put files in place
        self.wake()

    def is_idle(self, name: str) -> bool:
        """Whether nothing of ours is at work on a node, or waits for it."""
        ledger = self.ledger
        return not (
            any(node == name for node, _ in ledger.in_flight)
            or name in ledger.loading.values()
            or any(node == name for node, _ in ledger.turns)
            or any(name in nodes for nodes in ledger.gates.values())
        )

    def drop(self, name: str) -> None:
        """A node that was leaving is gone, and all that was known of it."""
        after = without_node(self.snapshot, name)
        if all(node.polled for node in after.nodes.values()):
            after = msgspec.structs.replace(after, settled=True)
        self.snapshot = after
        self._forget_all(name)
        if (waiting := self._polled.pop(name, None)) is not None:
            waiting.set()
        self.wake()

    def drain(self, name: str) -> None:
        """Take a node out of service: it gets nothing new, what runs there goes on."""
        self._set_draining(name, True, "is drained: it gets no new work until it is undrained")

    def undrain(self, name: str) -> None:
        """Put a node back into service."""
        self._set_draining(name, False, "is back in service")

    def _set_draining(self, name: str, draining: bool, words: str) -> None:
        node = self.snapshot.nodes[name]
        if node.draining is not draining and not node.leaving:
            log.info("node %s %s", name, words)
            self._put(msgspec.structs.replace(node, draining=draining))

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

    def note_answered(self, node: str, model: str, at: float) -> None:
        """Record that a replica has finished an answer, at `at` (monotonic)."""
        known = self.snapshot.nodes.get(node)
        if known is not None and model in known.models:
            self.ledger.answered[node, model] = at

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
            if name not in self._sent or self._sent[name] >= since:
                return  # or it has left

    def _put(self, node: Node) -> None:
        before, after = self.snapshot, with_node(self.snapshot, node)
        if not after.settled and all(known.polled for known in after.nodes.values()):
            after = msgspec.structs.replace(after, settled=True)
        self.snapshot = after
        self._drop_unloaded(before.nodes[node.name], node)
        if self.ledger.unloadable:
            self._recheck_unloadable(before.nodes[node.name], node)
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

    def _forget_all(self, name: str) -> None:
        """What we know of a node, but for what runs there or waits for it: that ends by itself."""
        ledger = self.ledger
        kept: tuple[dict[tuple[str, str], Any], ...] = (
            ledger.answered,
            ledger.counted,
            ledger.faults,
            ledger.failures,
            ledger.last_access,
            ledger.load_seconds,
            ledger.promises,
            ledger.served,
            ledger.spared,
            ledger.unloadable,
        )
        for book in kept:
            for key in [key for key in book if key[0] == name]:
                del book[key]
        for footprint in [key for key in ledger.footprints if key.node == name]:
            del ledger.footprints[footprint]
        ledger.freed.pop(name, None)
        self._sent.pop(name, None)
        self._state_log.forget(name)

    def _forget_profiles(self, before: Catalogue, after: Catalogue) -> None:
        """What was learnt of a model that is to be loaded in another way now."""
        ledger, old, new = self.ledger, before.profiles, after.profiles
        for key in [key for key in ledger.failures if old.get(key[1]) != new.get(key[1])]:
            del ledger.failures[key]
        for footprint in list(ledger.footprints):
            was, now = old.get(footprint.model), new.get(footprint.model)
            if was is not None and (now is None or fingerprint(was) != fingerprint(now)):
                del ledger.footprints[footprint]

    def _recheck_unloadable(self, before: Node, after: Node) -> None:
        """Forget which loads a node could not do, once that may have changed."""
        unloadable, is_other = self.ledger.unloadable, before.epoch != after.epoch
        if before.files is not after.files or before.models is not after.models or is_other:
            is_other = is_other or before.files != after.files
            for key in [key for key in unloadable if key[0] == after.name]:
                info = after.models.get(key[1])
                if is_other or (info is not None and info.status == LOADED):
                    del unloadable[key]

    def _drop_unloaded(self, before: Node, after: Node) -> None:
        """What is remembered of a model ends with its stay."""
        if before.models is after.models and before.epoch == after.epoch:
            return
        ledger = self.ledger
        for model in before.models:
            key, info = (after.name, model), after.models.get(model)
            if info is None:
                for kept in (
                    ledger.answered,
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
