"""The single-flight table: however many requests want a cold model, one load brings it.

An entry is a job of its own with everybody else waiting on it. The job belongs to no connection:
a client that leaves never cancels it, and one that comes back joins it. Beside loads the table
holds waits for what others have under way (a load started elsewhere, a recovery, our own start),
so that a thousand waiters are one watcher there too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping

from cortexd import errors
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.fleet.placement import Placement
from cortexd.fleet.routing import Load, Query, Wait, decide
from cortexd.fleet.snapshot import Failure
from cortexd.metrics import Metrics
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import LOADED, LOADING, RELOADING

log = logging.getLogger(__name__)

FIRST_BACKOFF = 15.0  # seconds; doubled by every further failure
LONGEST_BACKOFF = 300.0
RECOVERY_BOUND = 10.0  # seconds to wait for a model that its node is rebuilding
_COMING = {LOADED, LOADING, RELOADING}


class Entry:
    """One job and those who wait for it. `refusal` is set when it ended for good."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.waiting = 0
        self.refusal: Refusal | None = None


class LoadTable:
    """Loads under way, one per model, and the back-off of those that failed.

    timeout: seconds after which waiters are told to come back; the load itself is the node's.
    """

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        poller: Poller,
        metrics: Metrics,
        *,
        timeout: float,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._poller = poller
        self._metrics = metrics
        self._timeout = timeout
        self._tasks = Tasks()
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def waiting(self) -> dict[str, int]:
        """How many requests wait, by model (known ones; the rest is no label)."""
        snapshot = self._registry.snapshot
        return {
            model: entry.waiting
            for model, entry in self._entries.items()
            if model in snapshot.replicas or model in snapshot.catalogue.profiles
        }

    async def wait_settled(self, decision: Load | Wait) -> None:
        """Join the model's job, or start it; returns when it is time to decide again.

        Raises Refusal when the wait was in vain.
        """
        model = decision.model
        entry = self._entries.get(model)
        if entry is None:
            entry = self._entries[model] = Entry()
            if isinstance(decision, Load):
                self._registry.ledger.loading[model] = decision.placement.node
                work = self._load(entry, model, decision.placement)
            else:
                work = self._watch(entry, decision)
            self._tasks.spawn(f"load {model}", self._run(entry, model, work))
        entry.waiting += 1
        try:
            await entry.ended.wait()
        finally:
            entry.waiting -= 1
        if entry.refusal is not None:
            raise Refusal(
                entry.refusal.kind,
                entry.refusal.message,
                retry_after=entry.refusal.retry_after,
            )

    async def close(self) -> None:
        """Tell the waiters at once. The loads themselves are left to their nodes."""
        for entry in self._entries.values():
            entry.refusal = Refusal(
                errors.SHUTTING_DOWN, "The gateway is shutting down; try again in a moment."
            )
        await self._tasks.close()

    async def _run(self, entry: Entry, model: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        finally:
            # In one turn of the loop: nobody can join a job that has ended.
            self._entries.pop(model, None)
            self._registry.ledger.loading.pop(model, None)
            entry.ended.set()

    async def _load(self, entry: Entry, model: str, placement: Placement) -> None:
        node, started = placement.node, time.monotonic()
        log.info("loading %r on %s", model, node)
        try:
            async with asyncio.timeout(self._timeout):
                if await self._clients[node].load(placement.spec) != LOADED:
                    await self._wait_resident(node, model)
        except TimeoutError:
            log.warning("loading %r on %s takes over %g s", model, node, self._timeout)
            self._metrics.child(self._metrics.loads, model, node, "timeout").inc()
            entry.refusal = _still_loading(model, node)
        except NodeError as error:
            self._fail(model, node, str(error))
        else:
            took = time.monotonic() - started
            log.info("loaded %r on %s in %.1f s", model, node, took)
            self._registry.ledger.failures.pop((node, model), None)
            self._registry.tell(node, model, LOADED)
            self._metrics.child(self._metrics.loads, model, node, "ok").inc()
            self._metrics.child(self._metrics.load_duration, model).observe(took)
        self._poller.nudge(node)

    async def _wait_resident(self, node: str, model: str) -> None:
        """Watch /models of a node that took note of a load; raises NodeError when it is lost."""
        self._registry.tell(node, model, LOADING)
        while True:
            await self._registry.wait_changed()
            info = self._registry.snapshot.nodes[node].models.get(model)
            if info is None or info.status not in _COMING:
                words = info.error if info and info.error else "the load has vanished"
                raise NodeError(words)
            if info.status != LOADING:
                return

    def _fail(self, model: str, node: str, words: str) -> None:
        failures = self._registry.ledger.failures
        before = failures.get((node, model))
        count = before.count + 1 if before else 1
        pause = min(FIRST_BACKOFF * 2 ** (count - 1), LONGEST_BACKOFF)
        failures[node, model] = Failure(words, time.monotonic() + pause, count)
        self._metrics.child(self._metrics.loads, model, node, "failed").inc()
        log.warning("loading %r on %s failed, next try in %g s: %s", model, node, pause, words)

    async def _watch(self, entry: Entry, begun: Wait) -> None:
        """Until routing has something other than this wait to say."""
        bound = self._timeout
        if begun.reason == "recovering":
            bound = min(bound, RECOVERY_BOUND)
        try:
            async with asyncio.timeout(bound):
                while True:
                    snapshot, ledger = self._registry.snapshot, self._registry.ledger
                    now = decide(Query(begun.model), snapshot, ledger, time.monotonic())
                    if not isinstance(now, Wait) or now.reason != begun.reason:
                        return
                    await self._registry.wait_changed()
        except TimeoutError:
            if begun.reason == "recovering":
                entry.refusal = Refusal(
                    errors.MODEL_RECOVERING,
                    f"The model {begun.model!r} is being rebuilt on {begun.node}; try again soon.",
                )
            else:
                entry.refusal = _still_loading(begun.model, begun.node)


def _still_loading(model: str, node: str | None) -> Refusal:
    where = f" on {node}" if node else ""
    return Refusal(
        errors.MODEL_LOADING,
        f"The model {model!r} is still loading{where}. The load goes on; try again later.",
    )
