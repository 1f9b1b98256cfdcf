"""`decide`: where one request goes. Pure and silent: the answer depends on the arguments alone.

The order is the product's promise: a node where the model is loaded, a node that knows it, a
catalogue model that can be loaded, else a refusal that says why. The cost is that of the model's
own replicas, whatever the size of the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.fleet.assessment import absence, glance
from cortexd.fleet.choice import Affinity, choose, no_affinity
from cortexd.fleet.memory import RESIDENT, free
from cortexd.fleet.placement import NoPlacement, Placement, place
from cortexd.fleet.snapshot import Failure, Ledger, Node, Replica, Snapshot
from cortexd.wire.neuron import (
    FAILED,
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    UNKNOWN,
    UNLOADED,
)


class Query(msgspec.Struct, frozen=True):
    """What is asked: a concrete model id, and the nodes that have failed this request already.

    affinity: gives the key of what the request belongs to; asked only when replicas are equal.
    turn: its number, for when there is no such key.
    may_evict: whether other models may be unloaded for it; False for a request that is not worth
        that, which is refused instead.
    """

    model: str
    tried: Collection[str] = ()
    affinity: Affinity = no_affinity
    turn: int = 0
    may_evict: bool = True


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
NO_FAILURES: Final[Mapping[str, Failure]] = MappingProxyType({})

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
    if able:
        left = [r for r in able if r.node not in query.tried] if query.tried else able
        if not left:
            return Refuse(_all_failed(model, able))
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
        return Refuse(_all_failed(model, asleep))
    if not query.may_evict:
        left = [r for r in left if _needs_no_eviction(model, nodes[r.node], snapshot, ledger, now)]
    if (roused := _roused(left, snapshot, ledger, now)) is not None:
        return Lazy(roused)
    if gated and query.may_evict:  # what is begun meanwhile would be unloaded, too
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
    """How its load failed there; until that is in the ledger, it has only just failed."""
    known = ledger.failures.get((replica.node, replica.model))
    error = snapshot.nodes[replica.node].models[replica.model].error
    return known or Failure(error or "its load failed", now + 1)


def _needs_no_eviction(
    model: str, node: Node, snapshot: Snapshot, ledger: Ledger, now: float
) -> bool:
    """Whether the model can be loaded there without any other being unloaded, for certain.

    A node may evict by itself: where the size is not known, no other model may be resident.
    """
    profile = snapshot.catalogue.profiles.get(model)
    if profile is not None and node.hardware is not None:
        seen = glance(profile, node, snapshot, ledger, now)
        if seen.share is not None:
            return seen.fits
    return not any(
        info.status in RESIDENT and other != model for other, info in node.models.items()
    ) and not any(name == node.name and other != model for name, other in ledger.promises)


def not_loaded(model: str) -> Refusal:
    """Refuse a request for which no other model is unloaded."""
    return Refusal(
        errors.MODEL_NOT_LOADED,
        f"The model {model!r} is not loaded, and other models are not unloaded to count tokens. "
        "Send a request to the model first, or estimate the count.",
    )


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


def refusal(
    model: str,
    snapshot: Snapshot,
    nothing: NoPlacement | None,
    now: float,
    stuck: Sequence[Replica] = (),
    failed: Mapping[str, Failure] = NO_FAILURES,
) -> Refusal:
    """Why nothing serves it; the order of the checks is part of the interface.

    nothing: why it can't be placed; None: it is not in the catalogue. stuck: replicas that are
    resident but can't answer. failed: of a model that is not in the catalogue, node → how its load
    failed there a moment ago.
    """
    failures = nothing.failures if nothing else failed
    nodes = snapshot.nodes
    if not nodes:
        return Refusal(
            errors.NO_FEASIBLE_NEURON, "No nodes are configured; add a [[neurons]] table."
        )
    if not snapshot.healthy:
        return Refusal(
            errors.NO_HEALTHY_NODES,
            "No node is healthy: "
            + _listed(
                f"{node.name} ({node.trouble or 'not polled yet'})" for node in nodes.values()
            )
            + ". Start a neuron or check the network; requests are served as soon as one answers.",
        )
    away = dict(nothing.asleep) if nothing else {}
    holders = set(nothing.holders) if nothing else set()
    for replica in snapshot.replicas.get(model, ()):
        node = nodes[replica.node]
        if not node.is_available:
            holders.add(node.name)
            away.setdefault(node.name, absence(node) or "draining")
    if away and not stuck and not failures and not (nothing and nothing.crowded):
        return Refusal(errors.FEASIBLE_NODE_UNHEALTHY, _away(model, away, holders))
    if stuck:
        return Refusal(
            errors.MODEL_UNSERVABLE,
            f"The model {model!r} is resident but can't answer: "
            + _listed(f"{replica.node} says {replica.unservable}" for replica in stuck)
            + ". It needs attention on that node.",
        )
    if nothing is not None and nothing.crowded:
        return Refusal(
            errors.NO_ROOM,
            f"There is no room for the model {model!r}: "
            + _listed(f"{name}: {reason}" for name, reason in nothing.crowded.items())
            + f". Unload one of these, give {model!r} a higher residency_priority, or try again "
            "later.",
        )
    if failures:
        left = max(1, math.ceil(min(failure.until for failure in failures.values()) - now))
        return Refusal(
            errors.COLD_LOAD_FAILED,
            f"The model {model!r} could not be loaded: "
            + _listed(f"{name} says {failure.message}" for name, failure in failures.items())
            + f". It is tried again in {left} s.",
            retry_after=left,
        )
    if nothing is None:
        odd = [each for each in snapshot.replicas.get(model, ()) if each.status == UNKNOWN]
        return _odd(model, odd) if odd else unknown_model(model, snapshot)
    return Refusal(
        errors.NO_FEASIBLE_NEURON,
        f"No node can load the model {model!r}: "
        + _listed(f"{name}: {reason}" for name, reason in nothing.infeasible.items())
        + ". Change its profile, put its file on a node, or add a node.",
    )


def _odd(model: str, replicas: list[Replica]) -> Refusal:
    return Refusal(
        errors.MODEL_UNSERVABLE,
        f"The model {model!r} has a status that this gateway does not know on "
        + _listed(replica.node for replica in replicas)
        + ". Update the gateway, or load the model on another node.",
    )


def _away(model: str, away: Mapping[str, str], holders: Collection[str]) -> str:
    """The model needs a node that can't be used now. holders: of these, the ones that have it."""
    those = {name: reason for name, reason in away.items() if name in holders} or away
    nodes = _listed(f"{name}, which is {reason}" for name, reason in those.items())
    if holders:
        return f"The model {model!r} is only available on {nodes}. Try again when it is back."
    return (
        f"The model {model!r} could only be loaded on {nodes}. Try again when one of them is back."
    )


def unknown_model(model: str, snapshot: Snapshot) -> Refusal:
    """Refuse a model that no node lists and the catalogue does not list either.

    It is not missing for certain before every node has answered once since the gateway started.
    """
    unheard = [node for node in snapshot.nodes.values() if node.is_unheard]
    if not unheard:
        return Refusal(
            errors.MODEL_NOT_FOUND,
            f"The model {model!r} does not exist: no node has it and the catalogue does not list "
            "it. GET /v1/models lists what there is.",
        )
    listed = listed_before(model, snapshot)
    where = _listed(
        f"{node.name} ({node.trouble or 'not polled yet'})" for node in listed or unheard
    )
    if listed:
        message = (
            f"The model {model!r} was last listed by a node that has not answered since the "
            f"gateway started: {where}. Try again when that node is up."
        )
    else:
        message = (
            f"The model {model!r} is neither in the catalogue nor on a node that answers. It may "
            f"be on a node that has not answered since the gateway started: {where}. Check the "
            "name, or try again when that node is up."
        )
    return Refusal(errors.FEASIBLE_NODE_UNHEALTHY, message)


def listed_before(model: str, snapshot: Snapshot) -> list[Node]:
    """Return the nodes that listed the model before the gateway started and have not answered."""
    return [
        node for node in snapshot.nodes.values() if node.is_unheard and model in node.listed_before
    ]


def _all_failed(model: str, replicas: list[Replica]) -> Refusal:
    return Refusal(
        errors.UPSTREAM_FAILED,
        f"Every node that has the model {model!r} failed this request: "
        + _listed(replica.node for replica in replicas)
        + ". Try again.",
    )


def _listed(parts: Iterable[str], limit: int = 8) -> str:
    words = list(parts)
    rest = f" and {len(words) - limit} more" if len(words) > limit else ""
    return "; ".join(words[:limit]) + rest
