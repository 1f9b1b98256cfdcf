"""Warns of aliases whose model is nowhere, once for each alias and model."""

from __future__ import annotations

import logging

from cortexd.control.registry import Registry
from cortexd.fleet.aliases import points_nowhere
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Snapshot

log = logging.getLogger(__name__)


class AliasWatch:
    """Checks the aliases again when the catalogue or the models of the fleet have changed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: Snapshot | None = None
        self._warned: set[tuple[str, str]] = set()

    def observed(self, name: str, seen: Observation) -> None:
        """Called after each poll; costs a few comparisons of references if nothing has changed."""
        snapshot, before = self._registry.snapshot, self._seen
        self._seen = snapshot
        if snapshot.catalogue.aliases and (before is None or _may_differ(before, snapshot)):
            for alias, model in snapshot.catalogue.aliases.items():
                if (alias, model) not in self._warned and points_nowhere(alias, snapshot):
                    self._warned.add((alias, model))
                    _warn(alias, model)


def _may_differ(before: Snapshot, after: Snapshot) -> bool:
    return (
        before.catalogue is not after.catalogue
        or before.replicas is not after.replicas
        or before.healthy != after.healthy  # a node's first answer may bring no model
        or before.settled != after.settled
    )


def _warn(alias: str, model: str) -> None:
    log.warning(
        "the alias %r points to the model %r, which no node has and the catalogue does not list: "
        "requests for it are refused; correct [aliases], or add the model to [[models]]",
        alias,
        model,
    )
