"""Where each replica takes inference: asked once, then remembered.

An answer holds as long as the replica itself is the same one in the snapshot: a change of its
status or a restart of its node makes another replica of it, and so does the gateway ask anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from cortexd import errors
from cortexd.config.current import Current
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import Node, Replica
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.nodes.endpoint import EndpointRefused, usable_endpoint

log = logging.getLogger(__name__)


class EndpointMissing(Exception):
    """The node will not serve a model that we took to be there."""


class Endpoints:
    """The inference endpoints of the fleet."""

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        current: Current,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._current = current
        self._tasks = Tasks()
        self._known: dict[tuple[str, str], tuple[Replica, str]] = {}
        # By the replica itself: another process, or another node of the name, is asked anew.
        self._asked: dict[Replica, asyncio.Task[str | Refusal | EndpointMissing]] = {}

    def known(self, replica: Replica) -> str | None:
        """The same when it need not be asked."""
        found = self._known.get((replica.node, replica.model))
        return found[1] if found is not None and found[0] is replica else None

    async def resolve(self, replica: Replica) -> str:
        """The base URL for inference on this replica, without a trailing slash.

        Raises EndpointMissing, or Refusal (endpoint_resolve_failed, endpoint_refused).
        """
        if (known := self.known(replica)) is not None:
            return known
        # Simultaneous requests share one question; it belongs to none of them.
        task = self._asked.get(replica)
        if task is None:
            # Whom to ask is looked up now: by its turn the node may have left.
            node, client = self._registry.snapshot.nodes[replica.node], self._clients[replica.node]
            task = self._asked[replica] = self._tasks.spawn(
                f"endpoint {replica.node}", self._ask(replica, node, client)
            )
            task.add_done_callback(lambda _: self._asked.pop(replica, None))
        found = await asyncio.shield(task)
        if isinstance(found, Exception):
            raise found
        return found

    def drop(self, replica: Replica) -> str | None:
        """Forget an endpoint that refused a connection; returns what it was."""
        known = self._known.pop((replica.node, replica.model), None)
        return known[1] if known else None

    def forget(self) -> None:
        """Ask anew everywhere: another rule holds for what may be used."""
        self._known.clear()

    async def close(self) -> None:
        """Stop asking."""
        await self._tasks.close()

    async def _ask(
        self, replica: Replica, node: Node, client: NeuronClient
    ) -> str | Refusal | EndpointMissing:
        try:
            said = await client.endpoint(replica.model, self._current.config.polling.timeout)
            # The rule that holds now: it may have changed while the node was asked.
            allowed = self._current.config.security.allowed_inference_hosts
            url = usable_endpoint(said, node.endpoint, allowed)
        except EndpointRefused as error:
            words = client.masked(str(error))
            log.warning("node %s, model %r: %s", node.name, replica.model, words)
            return Refusal(
                errors.ENDPOINT_REFUSED,
                f"The node {node.name} can't be used for {replica.model!r}: {words}.",
            )
        except NodeError as error:
            if error.status == 404:
                return EndpointMissing(str(error))
            return Refusal(
                errors.ENDPOINT_RESOLVE_FAILED,
                f"The node {node.name} does not say where it serves {replica.model!r}: {error}.",
            )
        self._prune()
        self._known[replica.node, replica.model] = (replica, url)
        return url

    def _prune(self) -> None:
        current = self._registry.snapshot.replicas
        if len(self._known) > 64 + 4 * len(current):
            self._known = {
                key: (replica, url)
                for key, (replica, url) in self._known.items()
                if any(replica is known for known in current.get(key[1], ()))
            }
