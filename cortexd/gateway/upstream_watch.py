"""Checks once a second which nodes are dead and which models are silent, by their requests.

A process that is stopped keeps its connections: its kernel acknowledges whatever is sent, and no
transport ever reports a fault. Only time shows it, so this compares timestamps that the exchanges
keep anyway, and costs a request nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cortexd.config.current import Current
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.fleet.snapshot import Node, Replica
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.exchange import Exchange
from cortexd.wire.neuron import LOADED

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between two checks

Key = tuple[str, str]


class UpstreamWatch:
    """Ends requests on dead nodes and names silent replicas.

    unanswered: (node, model) → when its oldest request without a byte of an answer was sent, loop
        time. silent: replicas that sent no byte to any request for `[upstream] silent_after`
        seconds, with the age of their oldest request in seconds. Both as of the last check.
    """

    def __init__(self, registry: Registry, exchange: Exchange, current: Current) -> None:
        self._registry = registry
        self._exchange = exchange
        self._current = current
        self._tasks = Tasks()
        self.unanswered: Mapping[Key, float] = MappingProxyType({})
        self.silent: Mapping[Key, float] = MappingProxyType({})

    def start(self) -> None:
        """Begin the checks."""
        self._tasks.spawn("upstream watch", self._keep_looking())

    async def close(self) -> None:
        """End the checks."""
        await self._tasks.close()

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Check once. `now`: loop time."""
        upstream = self._current.config.upstream
        self._interrupt_dead(now, upstream.dead_node_grace)
        unanswered: dict[Key, float] = {}
        heard: dict[Key, float] = {}
        for exchange in self._exchange.in_progress():
            replica = exchange.target_key
            if not isinstance(replica, Replica):
                continue
            key = (replica.node, replica.model)
            if exchange.is_unanswered:
                unanswered[key] = min(exchange.sent, unanswered.get(key, exchange.sent))
            else:
                heard[key] = max(exchange.quiet_since, heard.get(key, 0.0))
        self.unanswered = unanswered
        after = upstream.silent_after
        silent = self._find_silent(unanswered, heard, now, after) if after > 0 else {}
        if silent or self.silent:
            self._log_changes(silent)
        self.silent = silent

    def _interrupt_dead(self, now: float, grace: float) -> None:
        dead: dict[str, Node] = {
            node.name: node
            for node in self._registry.snapshot.nodes.values()
            if node.unhealthy_since is not None and now - node.unhealthy_since >= grace
        }
        if not dead:
            return
        for exchange in self._exchange.in_progress():
            replica = exchange.target_key
            if not isinstance(replica, Replica):
                continue
            node = dead.get(replica.node)
            # Another epoch: the node was configured anew, and the answers of the old one go on.
            # A request that still gets bytes goes on.
            if (
                node is not None
                and node.epoch == replica.epoch
                and now - exchange.quiet_since >= grace
            ):
                reason = node.trouble or "it does not answer"
                exchange.interrupt(UpstreamFault("dead", f"it stopped responding ({reason})"))

    def _find_silent(
        self, unanswered: Mapping[Key, float], heard: Mapping[Key, float], now: float, after: float
    ) -> dict[Key, float]:
        """Return the replicas that sent nothing for `after` seconds though a request waits there.

        One that is loading the model takes its time, and one that answers other requests is busy,
        not stuck.
        """
        silent = {}
        answered = self._registry.ledger.answered
        for key, sent in unanswered.items():
            if now - sent < after or now - heard.get(key, 0.0) < after:
                continue
            replica = self._registry.replica(*key)
            if replica is None or replica.status != LOADED:
                continue
            if now - answered.get(key, 0.0) >= after:
                silent[key] = now - sent
        return silent

    def _log_changes(self, silent: Mapping[Key, float]) -> None:
        for node, model in silent.keys() - self.silent.keys():
            log.warning(
                "model %r on %s has sent nothing for %.0f s to the oldest of its requests: its "
                "engine may be stuck; check that node's log, or unload the model there with "
                "--force",
                model,
                node,
                silent[node, model],
            )
        for node, model in self.silent.keys() - silent.keys():
            log.info("model %r on %s is no longer silent", model, node)
