"""What the end of a load leaves behind: in the ledger, the metrics, the log and the events."""

from __future__ import annotations

import logging
from typing import Final

from cortexd.control.entry import Entry
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.fleet.snapshot import Failure
from cortexd.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 15.0  # seconds; doubled by every further failure
LONGEST_BACKOFF: Final = 300.0


class Outcomes:
    """Notes how loads ended; whoever waits for them is the table's business."""

    def __init__(self, registry: Registry, metrics: Metrics, events: Events) -> None:
        self._registry = registry
        self._metrics = metrics
        self._events = events

    def loaded(self, entry: Entry) -> None:
        """The model is there; nothing is held against its node any more."""
        model, node = entry.model, entry.node or ""
        took = now() - entry.began
        ledger = self._registry.ledger
        ledger.load_seconds[node, model] = took
        ledger.failures.pop((node, model), None)
        ledger.unloadable.pop((node, model), None)
        log.info("loaded %r on %s in %.1f s", model, node, took)
        self._metrics.loads.inc(model, node, "ok")
        self._metrics.load_duration.observe((took,), model, node)
        self._events.tell("load_ready", node=node, model=model, seconds=round(took, 3))

    def failed(self, entry: Entry, words: str) -> None:
        """Its node is left alone with this model for a while, longer each time."""
        model, node = entry.model, entry.node or ""
        failures = self._registry.ledger.failures
        before = failures.get((node, model))
        count = before.count + 1 if before else 1
        pause = min(FIRST_BACKOFF * 2 ** (count - 1), LONGEST_BACKOFF)
        failures[node, model] = Failure(words, now() + pause, count)
        log.warning("loading %r on %s failed, next try in %g s: %s", model, node, pause, words)
        self._metrics.loads.inc(model, node, "failed")
        self._events.tell("load_failed", node=node, model=model, message=words)

    def impossible(self, entry: Entry, words: str) -> None:
        """Mark the model as one that its node can't load."""
        model, node = entry.model, entry.node or ""
        ledger = self._registry.ledger
        ledger.unloadable[node, model] = words
        ledger.failures.pop((node, model), None)
        log.warning(
            "%s can't load %r: %s; it is not asked again until its files change, it restarts, the "
            "configuration is reloaded, or an operator loads the model",
            node,
            model,
            words,
        )
        self._metrics.loads.inc(model, node, "failed")
        self._events.tell("load_failed", node=node, model=model, message=words)

    def cancelled(self, entry: Entry) -> None:
        """An operator wants it no more."""
        model, node = entry.model, entry.node or ""
        log.warning("the load of %r on %s is cancelled by an operator", model, node)
        self._metrics.loads.inc(model, node, "cancelled")
        self._events.tell("load_failed", node=node, model=model, message="cancelled by an operator")

    def late(self, entry: Entry, bound: float) -> None:
        """It takes over `bound` seconds, and goes on."""
        model, node = entry.model, entry.node or ""
        log.warning("loading %r on %s takes over %g s", model, node, bound)
        self._metrics.loads.inc(model, node, "timeout")

    def moved(self, entry: Entry, node: str) -> None:
        """It is further than it was."""
        self._events.tell(
            "load_progress",
            node=node,
            model=entry.model,
            stage=entry.stage,
            fraction=entry.fraction,
        )
