"""`decide`: where one request goes. Pure and silent: the answer depends on the arguments alone.

The order is the product's promise: a node where the model is loaded, a node that knows it, a
catalogue model that can be loaded, else a refusal that says why. The cost is that of the model's
own replicas, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Literal

import msgspec

from cortexd.errors import Refusal
from cortexd.fleet.assessment import glance
from cortexd.fleet.choice import Affinity, choose, no_affinity
from cortexd.fleet.memory import RESIDENT, free
from cortexd.fleet.placement import Placement, place
from cortexd.fleet.route_refusals import (
    all_failed,
    not_loaded,
    refusal,
    response_lost,
    response_out_of_reach,
)
from cortexd.fleet.snapshot import Failure, Ledger, Node, Replica, Snapshot
from cortexd.wire.neuron import (
    FAILED,
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    UNLOADED,
)


def always_fits(context: int) -> bool:
    """Return True, for a request whose size is not known."""
    return True


class Query(msgspec.Struct, frozen=True):
    """A concrete model id, the nodes that have failed this request already, and its constraints.

    affinity: returns the key of the request's conversation; called only if replicas are equal.
    turn: its number, used if there is no such key.
    may_evict: whether other models may be unloaded for it.
    home: the node that has what the request continues; it is preferred to all others.
    must_be_home: no other node can answer.
    could_fit: whether a context of so many tokens could hold it; called only if replicas differ.
    """

    model: str
    tried: Collection[str] = ()
    affinity: Affinity = no_affinity
    turn: int = 0
    may_evict: bool = True
    home: str | None = None
    must_be_home: bool = False
    could_fit: Callable[[int], bool] = always_fits


class Serve(msgspec.Struct, frozen=True):
    """Send it to this replica; one that is reloading makes it wait there."""

    replica: Replica


class Lazy(msgspec.Struct, frozen=True):
    """Send it to a node that has the model unloaded: it reloads it by itself."""

    replica: Replica


class Load(msgspec.Struct, frozen=True):
    """Ask this node to load the model, wait, and decide again."""

    model: str
    placement: Placement


class Wait(msgspec.Struct, frozen=True):
    """Wait for something that is under way, and decide again.

    reason: `starting` (nodes not asked yet); `loading`, `recovering` or `unloading` on `node`.
    """

    model: str
    reason: Literal["starting", "loading", "recovering", "unloading"]
    node: str | None = None

    @property
    def is_for_us(self) -> bool:
        """Whether it is for something of the gateway's own; it says nothing about the model."""
        return self.reason in {"starting", "unloading"}


class Refuse(msgspec.Struct, frozen=True):
    """Nothing can serve it, and why."""

    refusal: Refusal


# Of a replica that answers, or holds the request until it does.
ABLE: Final = frozenset({LOADED, RELOADING})

Decision = Serve | Lazy | Load | Wait | Refuse


def decide(query: Query, snapshot: Snapshot, ledger: Ledger, now: float) -> Decision:
    """Route one request. `now` is monotonic seconds, as in the ledger."""
    model = query.model
    nodes = snapshot.nodes
    replicas = snapshot.replicas.get(model, ())
    gated = ledger.gates.get(model) if ledger.gates else None
    if gated:
        replicas = tuple(replica for replica in replicas if replica.node not in gated)
    able = [
        replica
        for replica in replicas
        if replica.status in ABLE
        and replica.unservable is None
        and (node := nodes[replica.node]).healthy
        and not node.draining
    ]
    if query.home is not None:
        for replica in able:
            if replica.node == query.home and replica.node not in query.tried:
                return Serve(replica)
        if query.must_be_home:
            return _at_home(query.home, query, snapshot)
    if able:
        if len(able) > 1:
            able = _large_enough(able, query.could_fit)
        left = [r for r in able if r.node not in query.tried] if query.tried else able
        if not left:
            return Refuse(all_failed(model, able))
        return Serve(choose(left, snapshot, ledger, now, query.affinity, query.turn))
    here = [replica for replica in replicas if nodes[replica.node].is_available]
    if not snapshot.settled:
        return Wait(model, "starting")
    if (loader := ledger.loading.get(model)) is not None:
        return Wait(model, "loading", loader)
    for reason in (LOADING, RECOVERING):
        for replica in here:
            if replica.status == reason:
                return Wait(model, reason, replica.node)
    profile = snapshot.catalogue.profiles.get(model)
    failed = {
        replica.node: failure
        for replica in here
        if replica.status == FAILED
        and (failure := _failure(replica, snapshot, ledger, now)).until > now
    }
    asleep = [
        replica
        for replica in here
        if replica.status == UNLOADED
        # One that no catalogue can place is tried again by its node, once its back-off is over.
        or (replica.status == FAILED and profile is None and replica.node not in failed)
    ]
    left = [replica for replica in asleep if replica.node not in query.tried]
    if asleep and not left:
        return Refuse(all_failed(model, asleep))
    if not query.may_evict:
        left = [r for r in left if _needs_no_eviction(model, nodes[r.node], snapshot, ledger, now)]
    if (roused := _roused(left, snapshot, ledger, now)) is not None:
        return Lazy(roused)
    if gated and query.may_evict:  # the load would be unloaded, too
        return Wait(model, "unloading", min(gated))
    stuck = [replica for replica in here if replica.unservable is not None]
    nothing = None
    if profile is not None:
        placed = place(profile, snapshot, ledger, now, avoid=[r.node for r in stuck])
        if isinstance(placed, Placement):
            if query.may_evict:
                return Load(model, placed)
            node = nodes[placed.node]
            if not gated and _needs_no_eviction(model, node, snapshot, ledger, now):
                return Load(model, placed)
            return Refuse(not_loaded(model))
        nothing = placed
    if not query.may_evict and (asleep or gated or (nothing and nothing.crowded)):
        return Refuse(not_loaded(model))
    return Refuse(refusal(model, snapshot, nothing, now, stuck, failed))


def _failure(replica: Replica, snapshot: Snapshot, ledger: Ledger, now: float) -> Failure:
    """Return how its load failed there; until that is in the ledger, it has only just failed."""
    known = ledger.failures.get((replica.node, replica.model))
    error = snapshot.nodes[replica.node].models[replica.model].error
    return known or Failure(error or "its load failed", now + 1)


def _at_home(home: str, query: Query, snapshot: Snapshot) -> Serve | Refuse:
    """Route a request that only one node can answer, which gets no other new requests now."""
    node = snapshot.nodes.get(home)
    for replica in snapshot.replicas.get(query.model, ()):
        if replica.node != home or node is None:
            continue
        if home in query.tried:
            return Refuse(all_failed(query.model, [replica]))
        if not node.healthy:
            return Refuse(response_out_of_reach(node))
        if replica.status in ABLE and replica.unservable is None:  # it is draining, or cordoned
            return Serve(replica)
    return Refuse(response_lost(home, query.model))


def _large_enough(replicas: list[Replica], could_fit: Callable[[int], bool]) -> list[Replica]:
    """Leave out replicas whose context is too small for the request, if others are larger.

    If all are too small the largest stay: their answer says how much too long the prompt is.
    """
    first = replicas[0].context
    for replica in replicas:
        if replica.context != first:
            break
    else:
        return replicas  # the usual case
    fitting = [each for each in replicas if each.context is None or could_fit(each.context)]
    if fitting:
        return fitting
    largest = max(each.context or 0 for each in replicas)
    return [each for each in replicas if each.context == largest]


def _needs_no_eviction(
    model: str, node: Node, snapshot: Snapshot, ledger: Ledger, now: float
) -> bool:
    """Return whether the model can certainly be loaded there without an eviction.

    A node may evict by itself: if the size is not known, no other model may be resident.
    """
    profile = snapshot.catalogue.profiles.get(model)
    if profile is not None and node.hardware is not None:
        seen = glance(profile, node, snapshot, ledger, now)
        if seen.share is not None:
            return seen.fits
    return not any(
        info.status in RESIDENT and other != model for other, info in node.models.items()
    ) and not any(name == node.name and other != model for name, other in ledger.promises)


def _roused(
    asleep: list[Replica], snapshot: Snapshot, ledger: Ledger, now: float
) -> Replica | None:
    """Which of them reloads the model by itself; None: it has to be placed like any other.

    A model of the catalogue is left to a node only where it fits, as far as is known.
    """
    fitting = []
    for replica in asleep:
        node, profile = snapshot.nodes[replica.node], snapshot.catalogue.profiles.get(replica.model)
        if ledger.in_flight.get((replica.node, replica.model)):
            return replica  # whom we woke already is woken again, rather than a second one
        if profile is None or node.hardware is None:
            room = max(free(node, snapshot, ledger).values(), default=0.0)
        else:
            seen = glance(profile, node, snapshot, ledger, now)
            if not seen.fits or seen.failure is not None:
                continue
            room = seen.free_mb
        fitting.append((-room, replica.node, replica))
    return min(fitting)[2] if fitting else None
