"""Which nodes there are: they come and go while everything runs.

A node that is added is asked at once. One that is removed gets nothing new; when what runs there
has ended it is dropped, and with it everything that was known of it. One that is reached in another
way from now on is another node of the same name, whose predecessor's answers still go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

from cortexd.config.changes import Changes
from cortexd.config.current import Settings
from cortexd.config.gateway import Config, Neuron
from cortexd.control.coldload import LoadTable
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.snapshot import Node, Policy
from cortexd.nodes.client import NeuronClient

log = logging.getLogger(__name__)

LOOK: Final = 0.5  # seconds between two looks at what still runs on a node that leaves


class Roster:
    """Has the other parts follow the configuration's nodes.

    clients: by node; changed in place. connect: makes one. dropped: told of a node that is gone.
    """

    def __init__(
        self,
        registry: Registry,
        clients: dict[str, NeuronClient],
        poller: Poller,
        table: LoadTable,
        connect: Callable[[Neuron, str | None], NeuronClient],
        dropped: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._poller = poller
        self._table = table
        self._connect = connect
        self._dropped = dropped
        self._tasks = Tasks()

    def follow(self, settings: Settings, changes: Changes, drained: Collection[str]) -> None:
        """From now on it is these nodes, this catalogue and this policy.

        drained: names of nodes that an operator has taken out of service.
        """
        config = settings.config
        for name in changes.fresh:
            self._table.abandon(name)
        self._registry.reconfigure(
            nodes(config, drained),
            Catalogue.of(config.models, config.aliases),
            fresh=changes.fresh,
            unhealthy_after=config.polling.unhealthy_after,
            policy=policy(config),
        )
        for neuron in config.neurons:
            if neuron.name in changes.fresh:
                token = settings.tokens.get(neuron.name)
                self._clients[neuron.name] = self._connect(neuron, token)
        if changes.fresh:
            self._poller.begin(sorted(changes.fresh))
        for name in changes.gone:
            self._tasks.spawn(f"let {name} go", self._let_go(name))

    async def close(self) -> None:
        """Wait for nobody any more."""
        await self._tasks.close()

    async def _let_go(self, name: str) -> None:
        while True:
            # First of all: what was begun in this turn of the loop must have been seen.
            await asyncio.sleep(LOOK)
            node = self._registry.snapshot.nodes.get(name)
            if node is None or not node.leaving:  # it is back
                return
            if self._registry.is_idle(name):
                break
        self._poller.end(name)
        del self._clients[name]
        self._registry.drop(name)
        self._dropped(name)
        log.info("node %s is gone: nothing runs there any more", name)


def nodes(
    config: Config,
    drained: Collection[str] = (),
    listed_before: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> list[Node]:
    """Return the nodes of a configuration, as they are before any poll.

    listed_before: node → models that it listed before the gateway started.
    """
    return [
        Node(
            neuron.name,
            neuron.endpoint,
            draining=neuron.name in drained,
            weight=neuron.weight,
            reserve_mb=neuron.reserve_mb,
            listed_before=frozenset(listed_before.get(neuron.name, ())),
        )
        for neuron in config.neurons
    ]


def policy(config: Config) -> Policy:
    """What a configuration decides about the whole fleet."""
    eviction = config.eviction
    return Policy(
        affinity=config.routing.affinity == "prefix",
        stale_after=3 * config.polling.interval,
        evicts=eviction.enabled,
        patience=eviction.patience,
        gate_timeout=eviction.gate_timeout,
        min_residency=None if eviction.min_residency.is_auto else eviction.min_residency,
        idle_ttl=eviction.idle_ttl,
    )
