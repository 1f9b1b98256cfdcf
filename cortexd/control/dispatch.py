"""From a model's name to a replica that is claimed and an endpoint to send the request to.

Decides, carries out what the decision asks for (a load, a wait), and decides again: the effects
that `fleet.routing` leaves to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

import msgspec

from cortexd import errors
from cortexd.control.coldload import LoadTable
from cortexd.control.endpoints import EndpointMissing, Endpoints
from cortexd.control.entry import Patience
from cortexd.control.refusals import load_failed
from cortexd.control.registry import Lease, Registry
from cortexd.control.reservations import Reservations
from cortexd.errors import Refusal
from cortexd.fleet.choice import score
from cortexd.fleet.routing import ABLE, Decision, Lazy, Load, Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import Ledger, Replica
from cortexd.wire.neuron import LOADED, RELOADING, UNLOADED

MAX_PASSES = 2  # through the load table, for one request
RECHECK: Final = 10.0  # seconds to wait for a node's next report


class RouteDecision(msgspec.Struct, frozen=True):
    """Where a request goes. The claim on the replica must be released by who asked for it.

    endpoint: base URL without a trailing slash.
    route: how the model was met; everything but `loaded` is a cold start.
    waited: seconds spent waiting for a load.
    """

    replica: Replica
    endpoint: str
    route: Literal["loaded", "lazy", "cold"]
    lease: Lease
    waited: float = 0.0

    @property
    def node(self) -> str:
        """The node's name."""
        return self.replica.node

    @property
    def is_cold_start(self) -> bool:
        """Whether the request met a model that was not loaded."""
        return self.route != "loaded"


class Dispatcher:
    """Routes requests by the registry's snapshot and the load table.

    nudge: has a node polled now.
    """

    def __init__(
        self,
        registry: Registry,
        table: LoadTable,
        endpoints: Endpoints,
        reservations: Reservations,
        nudge: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._nudge = nudge
        self._reservations = reservations
        self._table = table
        self._endpoints = endpoints
        # Loop time. Asking for the running loop costs a system call before Python 3.12.
        self.now = asyncio.get_running_loop().time

    def route_now(self, query: Query) -> RouteDecision | None:
        """The same for the usual request, which has nothing to wait for; None for any other."""
        registry = self._registry
        decision = decide(query, registry.snapshot, registry.ledger, self.now())
        if not isinstance(decision, Serve):
            return None
        replica = decision.replica
        endpoint = self._endpoints.known(replica)
        if endpoint is None or replica.status != LOADED or registry.ledger.turns:
            return None
        lease = registry.lease(replica.node, replica.model)
        return RouteDecision(replica, endpoint, "loaded", lease)

    async def route(
        self, query: Query, patience: Patience | None = None, since: float | None = None
    ) -> RouteDecision:
        """Claim a replica for `query`, loading the model if need be. Raises Refusal.

        patience: told what the request waits for.
        since: when it arrived, loop time, after a node has turned it away though it had waited:
            it stands in line again, in the place of its arrival.
        """
        passes, missing, waited, cold = 0, 0, 0.0, False
        unusable: Refusal | None = None
        registry = self._registry
        while True:
            lease: Lease | None = None
            decision = decide(query, registry.snapshot, registry.ledger, self.now())
            match decision:
                case Refuse(refusal):
                    # That every replica was tried is known better by the last one of them.
                    raise (
                        unusable if unusable and refusal.kind is errors.UPSTREAM_FAILED else refusal
                    )
                case Load() | Wait():
                    # What is our own doing is not the model's fault and counts for nothing.
                    for_us = isinstance(decision, Wait) and decision.is_for_us
                    if passes == MAX_PASSES and not for_us:
                        raise _in_vain(query.model, registry.ledger)
                    passes += not for_us
                    cold = cold or not for_us
                    began, lacking = self.now(), registry.ledger.count_unloadable(query.model)
                    lease = await self._table.wait(decision, patience, may_evict=query.may_evict)
                    waited += self.now() - began
                    if lease is None:
                        # It was there, and makes room for another one: that is our own doing, too.
                        # A node that turned out not to have the file is not asked again.
                        passes -= not for_us and (
                            query.model in registry.ledger.gates
                            or registry.ledger.count_unloadable(query.model) > lacking
                        )
                        continue
                case Serve(replica) | Lazy(replica) if (
                    since is not None or (replica.node, replica.model) in registry.ledger.turns
                ):
                    # Others have waited for it for longer.
                    began, cold = self.now(), True
                    lease = await self._table.wait_turn(replica, since, patience)
                    waited += self.now() - began
                    if lease is None:
                        continue
                case Serve(replica) | Lazy(replica):
                    lease = registry.lease(replica.node, replica.model)
            try:
                return await self._claimed(lease, decision, cold, waited)
            except EndpointMissing as error:
                # We took it to be there and it is not: what was told is void.
                node, model = lease.key
                missing += 1
                registry.forget(node, model)
                if missing == MAX_PASSES:
                    raise Refusal(
                        errors.ENDPOINT_RESOLVE_FAILED,
                        f"The node {node} lists the model {model!r} but will not serve it: "
                        f"{error}. Try again.",
                    ) from error
            except Refusal as refusal:
                # No usable endpoint there: another replica may have one.
                unusable = refusal
                query = msgspec.structs.replace(query, tried={*query.tried, lease.key[0]})

    async def _claimed(
        self, lease: Lease, decision: Decision, cold: bool, waited: float
    ) -> RouteDecision:
        """The route on a claimed replica; the claim is given back when it comes to nothing."""
        try:
            node, model = lease.key
            if isinstance(decision, Lazy):
                # At once, so that those who come next join this node and wake no second one, and
                # count on other memory.
                self._registry.tell(node, model, RELOADING)
                self._reservations.wake(node, model)
            replica = self._registry.replica(node, model)
            if replica is None:
                raise EndpointMissing("it is gone again")
            endpoint = await self._endpoints.resolve(replica)
        except BaseException:
            lease.release()
            raise
        lazy = isinstance(decision, Lazy) or replica.status != LOADED
        return RouteDecision(
            replica, endpoint, "cold" if cold else "lazy" if lazy else "loaded", lease, waited
        )

    def other(self, query: Query) -> Replica | None:
        """Where a request would be sent at once if it were routed like that; claims nothing."""
        registry = self._registry
        decision = decide(query, registry.snapshot, registry.ledger, self.now())
        return decision.replica if isinstance(decision, Serve | Lazy) else None

    def can_route(self, query: Query) -> bool:
        """Return whether such a request would be served, possibly after a load; claims nothing."""
        registry = self._registry
        decision = decide(query, registry.snapshot, registry.ledger, self.now())
        return not isinstance(decision, Refuse)

    def has_better(self, query: Query, route: RouteDecision) -> bool:
        """Whether a request on `route` would be at least as well off where `query` leads."""
        other = self.other(query)
        if other is None:
            return False
        snapshot, ledger, now = self._registry.snapshot, self._registry.ledger, self.now()
        return score(other, snapshot, ledger, now) <= score(
            route.replica, snapshot, ledger, now, without=1
        )

    def confirm(self, route: RouteDecision, *, served: bool) -> None:
        """Say how it went on a replica that had to reload: it is loaded now, or not after all."""
        if route.route != "lazy":
            return
        node = self._registry.snapshot.nodes[route.node]
        if node.epoch == route.replica.epoch:  # else it is another process by now
            self._registry.tell(route.node, route.replica.model, LOADED if served else UNLOADED)

    async def still_listed(self, route: RouteDecision) -> bool:
        """Poll a node that answered that it does not have the model.

        Return whether it lists the same replica as resident even now, or did not report.
        """
        node, model = route.lease.key
        registry = self._registry
        registry.untell(node, model)
        self._endpoints.drop(route.replica)
        self._nudge(node)
        with suppress(TimeoutError):
            async with asyncio.timeout(RECHECK):
                await registry.wait_polled(node, self.now())
        replica = registry.replica(node, model)
        if replica is None or replica.status not in ABLE:
            return False
        if replica is not route.replica and route.route != "lazy":
            return False  # it was loaded again meanwhile
        registry.note_fault(node, model, suspect=False)
        return True

    async def endpoint_moved(self, route: RouteDecision) -> str | None:
        """After a refused connection: the replica's endpoint asked anew, when it is another."""
        before = self._endpoints.drop(route.replica)
        try:
            now = await self._endpoints.resolve(route.replica)
        except (EndpointMissing, Refusal):
            return None
        if now == before:
            return None
        # What refused the connection is not it any more.
        self._registry.forgive(route.node, route.replica.model)
        return now


def _in_vain(model: str, ledger: Ledger) -> Refusal:
    if failed := ledger.failed(model):
        return load_failed(model, failed, "Try again.")
    return Refusal(
        errors.MODEL_LOADING,
        f"The model {model!r} was loaded but is gone again. Try again in a moment.",
    )
