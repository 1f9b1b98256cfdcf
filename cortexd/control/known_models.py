"""Remembers which models each node listed last, in the state file, for the next start.

Only names, and only of models that the catalogue does not list: after a restart nothing else can
tell that such a model exists while its node is down. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cortexd.control.registry import Registry
from cortexd.daemon.state import StateFile
from cortexd.fleet.observe import Observation
from cortexd.wire.neuron import Model

MAX_NAMES: Final = 1000  # of one node
MAX_ALL_NAMES: Final = 10_000  # of all nodes together
MAX_NAME: Final = 512  # characters; nobody can ask for a longer name


class KnownModels:
    """Copies the names that nodes list into the state file, when they change."""

    def __init__(self, registry: Registry, state: StateFile) -> None:
        self._registry = registry
        self._state = state
        self._seen: dict[str, Mapping[str, Model]] = {}

    def observed(self, name: str, seen: Observation) -> None:
        """Called after each poll; costs a comparison of two references when nothing has changed."""
        models = self._registry.snapshot.nodes[name].models
        if seen.models is None or self._seen.get(name) is models:
            return
        self._seen[name] = models
        self._keep(name, self._names(models))

    def forget(self, name: str) -> None:
        """Drop the names of a node that was removed."""
        self._seen.pop(name, None)
        self._keep(name, ())

    def _names(self, models: Mapping[str, Model]) -> tuple[str, ...]:
        profiles = self._registry.snapshot.catalogue.profiles
        names = [name for name in models if name not in profiles and len(name) <= MAX_NAME]
        return tuple(sorted(names)[:MAX_NAMES])

    def _keep(self, name: str, names: tuple[str, ...]) -> None:
        before = self._state.state.models
        if before.get(name, ()) == names:
            return
        nodes = self._registry.snapshot.nodes
        kept = {node: its for node, its in before.items() if node in nodes and node != name}
        left = MAX_ALL_NAMES - sum(map(len, kept.values()))
        if names[:left]:
            kept[name] = names[:left]
        self._state.put(msgspec.structs.replace(self._state.state, models=kept))
