"""What the end of a load leaves behind: in the ledger, the metrics, the log and the events."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from cortexd.control.entry import Entry
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Failure
from cortexd.metrics import Metrics
from cortexd.wire.neuron import FAILED, LOADED, Model

log = logging.getLogger(__name__)

FIRST_BACKOFF: Final = 15.0  # seconds; doubled by every further failure
LONGEST_BACKOFF: Final = 300.0
NO_WORDS: Final = "its load failed"


class Outcomes:
    """Records how loads ended, those that nodes began by themselves too.

    The requests that wait for them belong to the load table.
    """

    def __init__(self, registry: Registry, metrics: Metrics, events: Events) -> None:
        self._registry = registry
        self._metrics = metrics
        self._events = events
        self._seen: dict[str, Mapping[str, Model]] = {}  # node → its models at its last poll
        registry.watchers.append(self._observed)

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
        moment = now()
        failure = _failed_again(failures.get((node, model)), words, moment)
        failures[node, model] = failure
        pause = failure.until - moment
        log.warning("loading %r on %s failed, next try in %g s: %s", model, node, pause, words)
        self._metrics.loads.inc(model, node, "failed")
        self._events.tell("load_failed", node=node, model=model, message=words)

    def impossible(self, entry: Entry, words: str) -> None:
        """Record that a node can't load the model however often it is asked."""
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

    def _observed(self, name: str, seen: Observation) -> None:
        """Record loads that the node began by itself and that failed there, by its last poll."""
        ledger, snapshot = self._registry.ledger, self._registry.snapshot
        if len(self._seen) > len(snapshot.nodes):  # some were removed
            self._seen = {each: it for each, it in self._seen.items() if each in snapshot.nodes}
        models = snapshot.nodes[name].models
        if seen.models is None or (models is self._seen.get(name) and not ledger.failures):
            return
        self._seen[name] = models
        failures, moment = ledger.failures, seen.received
        for key in [key for key in failures if key[0] == name]:
            info = models.get(key[1])
            if info is None and key[1] not in snapshot.catalogue.profiles:
                del failures[key]  # the model is not listed any more
            elif info is not None and info.status == LOADED:
                del failures[key]
        for model, info in models.items():
            key = name, model
            if (
                info.status != FAILED
                or ledger.loading.get(model) == name
                or key in ledger.in_flight
            ):
                continue
            known = failures.get(key)
            # Once for each attempt: a request that was sent there after the back-off was one.
            if known is None or known.until <= ledger.last_access.get(key, 0.0):
                failures[key] = _failed_again(known, info.error or NO_WORDS, moment)


def _failed_again(before: Failure | None, words: str, moment: float) -> Failure:
    count = before.count + 1 if before else 1
    return Failure(words, moment + min(FIRST_BACKOFF * 2 ** (count - 1), LONGEST_BACKOFF), count)
