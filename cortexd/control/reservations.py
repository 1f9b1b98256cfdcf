"""Memory on the nodes that loads are going to take, and what models were seen to take.

The only writer of `promises` and `footprints` in the ledger. What is free is `fleet.memory`'s to
say; here is only kept what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.fleet.memory import before
from cortexd.fleet.observe import Observation
from cortexd.fleet.promises import begun
from cortexd.fleet.snapshot import FootprintKey, Promise
from cortexd.wire.neuron import LOADED


class Reservations:
    """`measured`: called when a footprint was seen that is new or has changed."""

    def __init__(
        self, registry: Registry, measured: Callable[[FootprintKey, float], None] | None = None
    ) -> None:
        self._registry = registry
        self._measured = measured
        registry.watchers.append(self._observed)

    def claim(self, node: str, model: str, needs: Mapping[int, float]) -> None:
        """Others still make room for it: what they free is for this model alone."""
        self._registry.ledger.promises[node, model] = Promise(needs)

    def begin(self, node: str, model: str, needs: Mapping[int, float]) -> None:
        """Its load begins: what is free now less what it needs is what there is for others."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        there = before(snapshot.nodes[node], snapshot, ledger, besides=model)
        ledger.promises.update(begun(ledger.promises, (node, model), needs, there))

    def end(self, node: str, model: str) -> None:
        """Its load is over, well or not: what the node reports from now on says the rest."""
        promises = self._registry.ledger.promises
        promise = promises.get((node, model))
        if promise is None:
            return
        if promise.before is None:
            del promises[node, model]  # nothing was begun
        elif promise.ended is None:
            promises[node, model] = msgspec.structs.replace(promise, ended=now())

    def _observed(self, name: str, seen: Observation) -> None:
        if seen.models is None:
            return
        promises = self._registry.ledger.promises
        for key, promise in list(promises.items()):
            if key[0] == name and promise.ended is not None and promise.ended <= seen.sent:
                del promises[key]
        self._measure(name)

    def _measure(self, name: str) -> None:
        """Take what resident models use for what they need, wherever the catalogue loads them."""
        snapshot, footprints = self._registry.snapshot, self._registry.ledger.footprints
        for model, info in snapshot.nodes[name].models.items():
            profile = snapshot.catalogue.profiles.get(model)
            if profile is None or info.status != LOADED or not (info.vram_used_mb or 0) > 0:
                continue
            if info.harness not in (None, profile.harness):
                continue
            count = profile.min_devices if info.devices is None else len(info.devices)
            key = FootprintKey(model, profile.harness, profile.quant, count, name)
            if footprints.get(key) != info.vram_used_mb:
                footprints[key] = float(info.vram_used_mb or 0)
                if self._measured is not None:
                    self._measured(key, footprints[key])
