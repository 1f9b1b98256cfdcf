"""Series that are 0 before their first event, since one that appears with it shows no increase.

Every node, code and reason is known. There may be thousands of models on every node, so only some
(model, node) pairs are shown before they are used: resident models first, then the models that the
catalogue may load there, within bounds. A series that was shown stays until its node is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final, get_args

from cortexd.control.registry import Registry
from cortexd.errors import KINDS, UNKNOWN_ROUTE
from cortexd.fleet.memory import RESIDENT
from cortexd.fleet.snapshot import Snapshot
from cortexd.metrics import Metrics
from cortexd.proxy.answer import What

PAIRS: Final = 500  # (model, node), all nodes together
PAIRS_OF_NODE: Final = 100
MODELS: Final = 500  # models that are known without a node
MAIN_PATH: Final = "/v1/chat/completions"
# Statuses of a path that alerts look at; shown once the path was asked for.
STATUSES: Final = ("200", "429", "499", "500", "502", "503", "504")

_NO_RETRY: Final = frozenset({"invalid", "answered", "timeout", "stopped"})
_RETRIES: Final = tuple(what for what in get_args(What) if what not in _NO_RETRY)
_RESULTS: Final = ("200", "500", "502", "503", "refused", "reset", "timeout", "dead")
_LOADS: Final = ("ok", "failed", "cancelled", "timeout")
_EVICTIONS: Final = ("room", "idle")
_COLD: Final = ("lazy", "cold")


class KnownSeries:
    """Makes the metrics show the series that are known of the fleet.

    pairs: (model, node) pairs that are shown. models: models that are shown.
    """

    def __init__(self, metrics: Metrics, registry: Registry) -> None:
        self._metrics = metrics
        self._registry = registry
        self.pairs: dict[tuple[str, str], None] = {}
        self.models: dict[str, None] = {}
        self._of_node: dict[str, int] = {}
        self._seen: Snapshot | None = None
        self._asked = 0  # label sets of `requests` at the last run
        for kind in KINDS:
            if kind != UNKNOWN_ROUTE.code:  # counted separately
                metrics.refusals.expect(kind)
        metrics.unknown_paths.expect()
        for by in ("client", "upstream"):
            metrics.streams_interrupted.expect(by)
        for what in _RETRIES:
            metrics.upstream_retries.expect(what)

    def forget_node(self, name: str) -> None:
        """Show nothing of a removed node any more."""
        self._of_node.pop(name, None)
        for pair in [pair for pair in self.pairs if pair[1] == name]:
            del self.pairs[pair]
        self._seen = None

    def expect(self) -> Iterator[str]:
        """Add the series of the present fleet, in steps; each step yields no text."""
        ledger, snapshot = self._registry.ledger, self._registry.snapshot
        # Pairs that this gateway uses are shown whatever the bounds.
        for node, model in [*ledger.in_flight, *((n, m) for m, n in ledger.loading.items())]:
            if node in snapshot.nodes:
                self._show(model, node)
        for name in snapshot.nodes:
            for result in ("ok", "failed"):
                self._metrics.polls.expect(name, result)
        seen = self._seen
        if seen is None or (
            seen.replicas is not snapshot.replicas or seen.catalogue is not snapshot.catalogue
        ):
            yield from self._expect_models(snapshot)
            self._seen = snapshot  # a look that was given up has not seen all of it
        yield from self._expect_statuses()

    def _expect_models(self, snapshot: Snapshot) -> Iterator[str]:
        for model in snapshot.catalogue.profiles:
            self._show_model(model)
        for number, (model, node) in enumerate(_candidates(snapshot)):
            if len(self.pairs) >= PAIRS:
                break
            is_there = node in self._registry.snapshot.nodes  # it may have been removed meanwhile
            if is_there and self._of_node.get(node, 0) < PAIRS_OF_NODE:
                self._show(model, node)
            if number % 100 == 0:
                yield ""

    def _show(self, model: str, node: str) -> None:
        pair = (model, node)
        if pair in self.pairs:
            return
        self.pairs[pair] = None
        self._of_node[node] = self._of_node.get(node, 0) + 1
        metrics = self._metrics
        for result in _RESULTS:
            metrics.upstream_requests.expect(model, node, result)
        for result in _LOADS:
            metrics.loads.expect(model, node, result)
        for reason in _EVICTIONS:
            metrics.evictions.expect(model, node, reason)
        for kind in _COLD:
            metrics.cold_starts.expect(model, node, kind)
        for tokens in (
            metrics.prompt_tokens,
            metrics.completion_tokens,
            metrics.cached_prompt_tokens,
        ):
            tokens.expect(model, node)
        self._show_model(model)

    def _show_model(self, model: str) -> None:
        if model in self.models or len(self.models) >= MODELS:
            return
        self.models[model] = None
        self._metrics.usage_missing.expect(model)
        self._metrics.requests.expect(model, MAIN_PATH, "200")

    def _expect_statuses(self) -> Iterator[str]:
        requests = self._metrics.requests
        if len(requests) == self._asked:
            return
        asked = {(model, path) for model, path, _ in requests}
        for number, ((model, path), status) in enumerate(product(asked, STATUSES)):
            requests.expect(model, path, status)
            if number % 500 == 0:
                yield ""
        self._asked = len(requests)


def _candidates(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield (model, node) pairs, the likeliest to be used first."""
    nodes = snapshot.nodes.values()
    for node in nodes:
        for model, info in node.models.items():
            if info.status in RESIDENT:
                yield model, node.name
    for model, profile in snapshot.catalogue.profiles.items():
        for node in nodes:
            if not profile.pinned_on or node.name in profile.pinned_on:
                yield model, node.name
    for node in nodes:
        for model in node.models:
            yield model, node.name
