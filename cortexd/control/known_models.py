"""Remembers which models each node listed last, in the state file, for the next start.

Only names, and only of models that the catalogue does not list: after a restart nothing else can
tell that such a model exists while its node is down. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from cortexd.control.registry import Registry
from cortexd.daemon.state import StateFile
from cortexd.fleet.anomalies import MAX_MODELS
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.wire.neuron import Model

# Bytes of the names of all nodes together. The state file may have 8 MiB, and must not become
# unreadable by what nodes list.
MAX_BYTES: Final = 1 << 20


class KnownModels:
    """Copies the names that nodes list into the state file, when they change."""

    def __init__(self, registry: Registry, state: StateFile) -> None:
        self._registry = registry
        self._state = state
        self._seen: dict[str, tuple[Mapping[str, Model], Catalogue]] = {}

    def observed(self, name: str, seen: Observation) -> None:
        """Called after each poll; costs two comparisons of references when nothing has changed."""
        if seen.models is None:
            return
        snapshot = self._registry.snapshot
        models, catalogue = snapshot.nodes[name].models, snapshot.catalogue
        before = self._seen.get(name)
        if before is None or before[0] is not models or before[1] is not catalogue:
            self._seen[name] = models, catalogue
            self._keep(name, self._names(models))

    def forget(self, name: str) -> None:
        """Drop the names of a node that was removed."""
        self._seen.pop(name, None)
        self._keep(name, ())

    def _names(self, models: Mapping[str, Model]) -> tuple[str, ...]:
        profiles = self._registry.snapshot.catalogue.profiles
        return tuple(sorted(name for name in models if name not in profiles)[:MAX_MODELS])

    def _keep(self, name: str, names: tuple[str, ...]) -> None:
        before = self._state.state.models
        if before.get(name, ()) == names:
            return
        nodes = self._registry.snapshot.nodes
        kept = {node: its for node, its in before.items() if node in nodes and node != name}
        left = MAX_BYTES - sum(_size(each) for its in kept.values() for each in its)
        if its_own := tuple(_within(left, names)):
            kept[name] = its_own
        self._state.put(msgspec.structs.replace(self._state.state, models=kept))


def _within(left: int, names: Iterable[str]) -> Iterator[str]:
    """The first names, as many as take `left` bytes."""
    for name in names:
        left -= _size(name)
        if left < 0:
            return
        yield name


def _size(name: str) -> int:
    return len(name.encode()) + 3  # with its quotes and a comma
