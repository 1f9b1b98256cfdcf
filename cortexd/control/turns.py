"""After a load: more may wait for a model than its node takes at once, and each gets a turn.

A node that says what it takes (`max_in_flight` and `max_queue_depth`) is sent no more than that;
whoever it turns away in spite of it goes back to the front of the line.
"""

from __future__ import annotations

import asyncio

from cortexd.control.line import Line
from cortexd.control.refusals import still_loading
from cortexd.control.registry import Registry
from cortexd.fleet.routing import Lazy, Query, Serve, decide
from cortexd.fleet.snapshot import Replica

Key = tuple[str, str]  # node, model


class Turns:
    """The lines before replicas that are ready."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lines: dict[Key, Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> list[tuple[str, Line]]:
        """Every line, with its model."""
        return [(model, line) for (_, model), line in self._lines.items()]

    def begin(self, node: str, model: str, line: Line) -> None:
        """Turn the waits in `line` into claims, in this turn of the loop, as many as there is room
        for; the others keep their place."""
        key = (node, model)
        if key in self._lines:  # from before the model was gone; its waiters come back behind
            self._lines[key].dissolve()
            self._drop(key)
        self._grant(key, line, len(line))
        if len(line):
            self._add(key, line)

    def line_of(self, replica: Replica) -> Line:
        """The line before a replica, for those who come late or come back."""
        key = (replica.node, replica.model)
        return self._lines.get(key) or self._add(key, Line())

    def look(self, moment: float, timeout: float) -> None:
        """Regularly: end waits that are too long or in vain, and let the next ones go on."""
        for key, line in list(self._lines.items()):
            line.refuse(still_loading(key[1], key[0]), older_than=moment - timeout)
            self._next(key)

    def close(self) -> None:
        """Forget them all."""
        for key in list(self._lines):
            self._drop(key)

    def _add(self, key: Key, line: Line) -> Line:
        self._lines[key] = line
        self._registry.ledger.turns[key] = lambda: self._next(key)
        return line

    def _drop(self, key: Key) -> None:
        del self._lines[key]
        del self._registry.ledger.turns[key]

    def _next(self, key: Key) -> None:
        """A request there has ended, or time has passed: the next may go, while it serves."""
        line = self._lines[key]
        if self._serves(*key):
            self._grant(key, line, 1)
        else:
            line.dissolve()
        if not len(line):
            self._drop(key)

    def _serves(self, node: str, model: str) -> bool:
        """Whether this very replica does, wherever else the model is."""
        snapshot = self._registry.snapshot
        others = {known.node for known in snapshot.replicas.get(model, ())} - {node}
        decision = decide(Query(model, others), snapshot, self._registry.ledger, now())
        return isinstance(decision, Serve | Lazy)

    def _grant(self, key: Key, line: Line, unknown: int) -> None:
        """As many as there is room for; `unknown` when the node does not say."""
        count, (node, model) = unknown, key
        snapshot = self._registry.snapshot
        health, bare = snapshot.nodes[node].health, snapshot.catalogue.bare
        for load in (health and health.models) or ():
            if bare(load.id) == model and load.max_in_flight:
                most = load.max_in_flight + (load.max_queue_depth or 0)
                count = most - self._registry.ledger.in_flight.get(key, 0)
        line.grant(count, lambda: self._registry.lease(node, model))


def now() -> float:
    """Loop time, which a test may turn forward."""
    return asyncio.get_running_loop().time()
