"""Memory on the nodes that loads are going to take, and the measured footprints of models.

The only writer of `promises`, `freed` and `footprints` in the ledger; `fleet.memory` computes from
them how much is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.fleet.assessment import glance
from cortexd.fleet.memory import before, places, reported_free, size, totals
from cortexd.fleet.observe import Observation
from cortexd.fleet.promises import begun, freed, given_back, reported, under_way, unloaded
from cortexd.fleet.snapshot import ANYWHERE, FootprintKey, Promise
from cortexd.wire.neuron import LOADED, LOADING, RELOADING

NOTICED_WITHIN: Final = 30.0  # seconds after an unload for its node to notice the memory
NOISE: Final = 0.01  # a change of a footprint by this part of it is none


class Reservations:
    """`measured`: called when a footprint was seen that is new or has changed."""

    def __init__(self, registry: Registry, measured: Callable[[], None] | None = None) -> None:
        self._registry = registry
        self._measured = measured
        self._unloaded: dict[str, float] = {}  # node → when the last unload there ended
        registry.watchers.append(self._observed)

    def claim(self, node: str, model: str, needs: Mapping[int, float]) -> None:
        """Others still make room for it: what they free is for this model alone."""
        self._registry.ledger.promises[node, model] = Promise(needs)

    def begin(self, node: str, model: str, needs: Mapping[int, float]) -> None:
        """Its load begins: what is free now less what it needs is what there is for others."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        there = before(snapshot.nodes[node], snapshot, ledger, besides=model)
        ledger.promises.update(begun(ledger.promises, (node, model), needs, there))

    def wake(self, node: str, model: str) -> None:
        """Its node reloads it by itself, which ends when its reports say so."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        host, profile = snapshot.nodes[node], snapshot.catalogue.profiles.get(model)
        if profile is None or (node, model) in ledger.promises:
            return
        seen = glance(profile, host, snapshot, ledger, now())
        known = host.models[model].devices if model in host.models else None
        devices = places(known, totals(host.hardware)) if known else seen.devices
        if seen.share is not None and devices:
            share = seen.share * profile.min_devices / len(devices)
            self.begin(node, model, dict.fromkeys(devices, share))

    def end(self, node: str, model: str, *, failed: bool = False) -> None:
        """Its load is over: what the node reports from now on says the rest. failed: what it was
        promised is there for other loads again."""
        promises = self._registry.ledger.promises
        promise = promises.get((node, model))
        if promise is None or promise.ended is not None:
            return
        if promise.before is None:
            del promises[node, model]  # nothing was begun
            return
        if failed:
            promises.update(given_back(promises, (node, model)))
        promises[node, model] = msgspec.structs.replace(promise, ended=now())

    @contextmanager
    def unloading(self, node: str, model: str) -> Iterator[Callable[[], None]]:
        """Around an unload. What is given is to be called when the model has gone and its node has
        said so: the memory is there beside the loads that were under way all the time."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        host, promises = snapshot.nodes[node], ledger.promises
        held, seen_by = self._held(node, model), under_way(promises, node)
        free = reported_free(host, snapshot, ledger)
        # How much a load has taken so far is unknown, so none of it is known to come back.
        info = host.models.get(model)
        coming = held if info is not None and info.status == LOADED else {}

        def has_gone() -> None:
            promises.update(freed(promises, (node, model), held, seen_by))
            for each in [it for it, ended in self._unloaded.items() if _is_noticed(ended)]:
                del self._unloaded[each]
            self._unloaded[node] = now()
            if coming and node in self._registry.snapshot.nodes:
                known = unloaded(ledger.freed.get(node), coming, free, now(), host.epoch)
                ledger.freed[node] = known
                self._look_for_freed(node)

        yield has_gone

    def was_just_unloaded(self, node: str) -> bool:
        """Return whether an unload there is so recent that the node may not have noticed."""
        ended = self._unloaded.get(node)
        return node in self._registry.ledger.freed or not (ended is None or _is_noticed(ended))

    def _look_for_freed(self, name: str) -> None:
        """Subtract the free memory that the node reports from what is known to be coming there."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        if (known := ledger.freed.get(name)) is None:
            return
        node = snapshot.nodes[name]
        left = reported(known, reported_free(node, snapshot, ledger), now(), node.epoch)
        if left is None:
            del ledger.freed[name]
        else:
            ledger.freed[name] = left

    def _held(self, node: str, model: str) -> dict[int, float]:
        """Device → MiB that a resident model holds, as far as is known."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        host = snapshot.nodes[node]
        if (info := host.models.get(model)) is None:
            return {}
        devices = places(info.devices, totals(host.hardware))
        mb = size(info, host, snapshot, ledger)
        return {device: mb / len(devices) for device in devices} if mb and devices else {}

    def _observed(self, name: str, seen: Observation) -> None:
        self._look_for_freed(name)
        if seen.models is None:
            return
        promises = self._registry.ledger.promises
        models = self._registry.snapshot.nodes[name].models
        for key, promise in list(promises.items()):
            if key[0] != name or promise.before is None:
                continue
            info = models.get(key[1])
            if promise.ended is not None and promise.ended <= seen.sent:
                del promises[key]
            elif (
                promise.ended is None
                and key[1] not in self._registry.ledger.loading  # its node began it by itself
                and (info is None or info.status not in {LOADING, RELOADING})
            ):
                promises[key] = msgspec.structs.replace(promise, ended=now())
        self._measure(name)

    def _measure(self, name: str) -> None:
        """Take what resident models use for what they need, wherever the catalogue loads them."""
        snapshot, footprints = self._registry.snapshot, self._registry.ledger.footprints
        has_changed = False
        for model, info in snapshot.nodes[name].models.items():
            profile = snapshot.catalogue.profiles.get(model)
            if profile is None or info.status != LOADED or not info.vram_used_mb:
                continue
            if info.harness not in (None, profile.harness):
                continue
            count = profile.min_devices if info.devices is None else len(info.devices)
            key = FootprintKey(model, profile.harness, profile.quant, count, name)
            known, used = footprints.get(key), float(info.vram_used_mb)
            if known is None or abs(used - known) > NOISE * known:
                footprints[key] = used
                anywhere = msgspec.structs.replace(key, node=ANYWHERE)
                footprints[anywhere] = max(used, footprints.get(anywhere, 0.0))
                has_changed = True
        if has_changed and self._measured is not None:
            self._measured()


def _is_noticed(ended: float) -> bool:
    """Return whether a node has had its time to notice what an unload that ended then gave back."""
    return now() - ended >= NOTICED_WITHIN
