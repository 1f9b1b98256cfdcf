"""Unloads: each replica's once at a time, behind a gate, and brought to their end.

Who wants one (an operator, a model that needs the room, nobody for too long) and why is told here
and nowhere else: one line in the log, one event, one count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Literal

from cortexd import errors
from cortexd.control.events import Events
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.turns import now
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.metrics import Metrics
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import UNLOADED, UnloadRequest

log = logging.getLogger(__name__)

WITHIN: Final = 30.0  # seconds for a node to unload a model or to cancel its load
REPORTED_WITHIN: Final = 10.0  # seconds for its next report after that

Reason = Literal["operator", "room", "idle"]


class Unloads:
    """Has models unloaded."""

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        poller: Poller,
        reservations: Reservations,
        metrics: Metrics,
        events: Events,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._poller = poller
        self._reservations = reservations
        self._metrics = metrics
        self._events = events
        self._tasks = Tasks()
        self._running: dict[tuple[str, str], asyncio.Task[Refusal | None]] = {}

    async def unload(
        self,
        node: str,
        model: str,
        reason: Reason,
        words: str,
        *,
        force: bool = False,
        first: Callable[[], bool] | None = None,
    ) -> Refusal | None:
        """None when it is gone. It goes on though its caller leaves.

        words: why, for the log: "makes room for ...". force: though it is at work.
        first: called behind the gate; True when what is there can't be at work.
        """
        key = (node, model)
        if key not in self._running:  # a second one could meet a load that was begun in between
            work = self._unload(node, model, reason, words, force=force, first=first)
            task = self._running[key] = self._tasks.spawn(f"unload {model} on {node}", work)
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(self._running[key])

    async def close(self) -> None:
        """Let go of what still runs."""
        await self._tasks.close()

    async def _unload(
        self,
        node: str,
        model: str,
        reason: Reason,
        words: str,
        *,
        force: bool,
        first: Callable[[], bool] | None,
    ) -> Refusal | None:
        unloading = self._reservations.unloading(node, model)
        with self._registry.gate(node, model), unloading as has_gone:
            force = bool(first and first()) or force
            busy = self._registry.ledger.in_flight.get((node, model))
            if busy and not force:
                return _busy(node, model, f"{busy} of its requests are answered there")
            request = UnloadRequest(model, if_idle=None if force else True)
            try:
                await self._clients[node].unload(request, WITHIN)
            except NodeError as error:
                if error.status == 409:
                    self._poller.nudge(node)
                    return _busy(node, model, str(error))
                if error.status != 404:  # that it is not there is what was wanted
                    return Refusal(
                        errors.UNLOAD_FAILED,
                        f"The node {node} did not unload {model!r}: {error}. Try again.",
                    )
            log.info("unloaded %r from %s: %s", model, node, words)
            self._poller.nudge(node)
            if reason != "operator":  # who need not wait
                self._metrics.evictions.inc(model, node, reason)
                self._events.tell("evicted", node=node, model=model, message=words)
                # Until its memory is reported it is the one that holds it, behind the gate: who
                # looks for room meanwhile would find neither.
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPORTED_WITHIN):
                        await self._registry.wait_polled(node, now())
            has_gone()
            self._forget(node, model)
        return None

    def _forget(self, node: str, model: str) -> None:
        """A node that does not list it by itself lists it no more; its next poll says which."""
        replica = self._registry.replica(node, model)
        if replica is None or replica.status == UNLOADED:
            return
        if model in self._registry.snapshot.catalogue.profiles:
            self._registry.forget(node, model)
        else:
            self._registry.tell(node, model, UNLOADED)


def _busy(node: str, model: str, words: str) -> Refusal:
    return Refusal(
        errors.BUSY,
        f"The model {model!r} is at work on {node}: {words}. Try again when it is idle, or force "
        "it.",
    )
