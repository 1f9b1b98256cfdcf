"""What the log says of how nodes are: a line a change, but no more of them than one can read.

Only words are held back, never what they are about: events, metrics and routing know at once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cortexd.fleet.sanity import in_words
from cortexd.fleet.snapshot import Node

log = logging.getLogger(__name__)

PAUSE: Final = 1.0  # seconds between two lines about one node
WINDOW: Final = 60.0  # seconds in which changes are counted
MANY: Final = 6  # changes in that time: the node flaps
CALM: Final = 10.0  # seconds without a change, until one that flaps has settled
NO_ALIASES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(slots=True)
class _Told:
    """What has been said of a node. changes: when it went up or down lately."""

    is_up: bool
    trouble: str | None = None
    at: float = float("-inf")
    flaps: bool = False
    changes: deque[float] = field(default_factory=deque)


class StateLog:
    """Remembers what it has said of each node; whatever that node then stays in is said, too."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._hidden: set[str] = set()  # models behind an alias of their name

    def forget(self, name: str) -> None:
        """A node is gone, or another one now."""
        self._told.pop(name, None)

    def look(
        self, before: Node, after: Node, now: float, aliases: Mapping[str, str] = NO_ALIASES
    ) -> None:
        """Take in one poll, and say what is due. `now`: monotonic seconds."""
        told = self._told.get(after.name)
        if told is None:
            told = self._told[after.name] = _Told(before.healthy)
        if after.epoch != before.epoch:
            log.warning("node %s has restarted", after.name)
        if before.hardware is not after.hardware:
            _look_at_host(before, after)
        if before.nonsense is not after.nonsense:
            _look_at_nonsense(before, after)
        for model in (after.models.keys() & aliases.keys()) - self._hidden:
            self._hidden.add(model)
            log.warning(
                "node %s has a model %r, but that is an alias of %r here and goes there; give the "
                "alias another name to reach it",
                after.name,
                model,
                aliases[model],
            )
        changes = told.changes
        if before.healthy != after.healthy:
            changes.append(now)
        while changes and changes[0] <= now - WINDOW:
            changes.popleft()
        has_settled = not changes or now - changes[-1] >= CALM
        if told.flaps and not has_settled:
            return
        if len(changes) >= MANY and not has_settled:
            told.flaps, told.at = True, now
            log.warning(
                "node %s has gone up and down %d times in the last minute; look at its network or "
                "its process",
                after.name,
                len(changes) // 2,
            )
            return
        if now - told.at < PAUSE:
            return
        if told.flaps or told.is_up != after.healthy:
            told.at, told.flaps, told.is_up = now, False, after.healthy
            if after.healthy:
                log.info("node %s is up, with %d models", after.name, len(after.models))
            else:
                log.warning("node %s is down: %s", after.name, after.trouble)
        elif after.trouble and after.trouble != told.trouble:
            told.at = now
            log.warning("node %s: %s", after.name, after.trouble)
        told.trouble = after.trouble


def _look_at_host(before: Node, after: Node) -> None:
    was = before.hardware and before.hardware.hostname
    now = after.hardware and after.hardware.hostname
    if was and now and was != now:
        log.warning(
            "node %s was the host %s and is %s now; if that is not meant, check its endpoint",
            after.name,
            was,
            now,
        )


def _look_at_nonsense(before: Node, after: Node) -> None:
    new = {it: known for it, known in after.nonsense.items() if it not in before.nonsense}
    if new:
        log.warning(
            "node %s reports nonsense, which is ignored; look at its neuron: %s",
            after.name,
            in_words(new),
        )
    elif before.nonsense and not after.nonsense:
        log.info("node %s reports no more nonsense", after.name)
