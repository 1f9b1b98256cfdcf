"""Where each replica takes inference: asked once, then remembered.

An answer holds as long as the replica itself is the same one in the snapshot: a change of its
status or a restart of its node makes another replica of it, and so does the gateway ask anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from cortexd import errors
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import Replica
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.nodes.endpoint import EndpointRefused, usable_endpoint

log = logging.getLogger(__name__)


class EndpointMissing(Exception):
    """The node will not serve a model that we took to be there."""


class Endpoints:
    """The inference endpoints of the fleet. `timeout` is in seconds."""

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        *,
        allowed_hosts: Collection[str],
        timeout: float,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._allowed_hosts = allowed_hosts
        self._timeout = timeout
        self._tasks = Tasks()
        self._known: dict[tuple[str, str], tuple[Replica, str]] = {}
        self._asked: dict[tuple[str, str], asyncio.Task[str | Refusal | EndpointMissing]] = {}

    def known(self, replica: Replica) -> str | None:
        """The same when it need not be asked."""
        found = self._known.get((replica.node, replica.model))
        return found[1] if found is not None and found[0] is replica else None

    async def resolve(self, replica: Replica) -> str:
        """The base URL for inference on this replica, without a trailing slash.

        Raises EndpointMissing, or Refusal (endpoint_resolve_failed, endpoint_refused).
        """
        key = (replica.node, replica.model)
        if (known := self.known(replica)) is not None:
            return known
        # Simultaneous requests share one question; it belongs to none of them.
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = self._tasks.spawn(
                f"endpoint {replica.node}", self._ask(replica)
            )
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        found = await asyncio.shield(task)
        if isinstance(found, Exception):
            raise found
        return found

    def drop(self, replica: Replica) -> str | None:
        """Forget an endpoint that refused a connection; returns what it was."""
        known = self._known.pop((replica.node, replica.model), None)
        return known[1] if known else None

    async def close(self) -> None:
        """Stop asking."""
        await self._tasks.close()

    async def _ask(self, replica: Replica) -> str | Refusal | EndpointMissing:
        node = self._registry.snapshot.nodes[replica.node]
        try:
            said = await self._clients[node.name].endpoint(replica.model, self._timeout)
            url = usable_endpoint(said, node.endpoint, self._allowed_hosts)
        except EndpointRefused as error:
            log.warning("node %s, model %r: %s", node.name, replica.model, error)
            return Refusal(
                errors.ENDPOINT_REFUSED,
                f"The node {node.name} can't be used for {replica.model!r}: {error}.",
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
