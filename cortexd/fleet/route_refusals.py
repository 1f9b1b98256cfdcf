"""The refusals of `routing`: why no node can serve a request now, for the caller to read.

Pure, like the decision itself; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.fleet.assessment import absence
from cortexd.fleet.placement import NoPlacement
from cortexd.fleet.snapshot import Failure, Node, Replica, Snapshot
from cortexd.wire.neuron import UNKNOWN

NO_FAILURES: Final[Mapping[str, Failure]] = MappingProxyType({})


def refusal(
    model: str,
    snapshot: Snapshot,
    nothing: NoPlacement | None,
    now: float,
    stuck: Sequence[Replica] = (),
    failed: Mapping[str, Failure] = NO_FAILURES,
) -> Refusal:
    """Return why nothing serves the model; the order of the checks is part of the interface.

    nothing: why it can't be placed; None: it is not in the catalogue. stuck: replicas that are
    resident but can't answer. failed: of a model that is not in the catalogue, node → how its load
    failed there lately.
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
    """Return the message for a model on unavailable nodes. holders: those of them that have it."""
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


def all_failed(model: str, replicas: list[Replica]) -> Refusal:
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


def not_loaded(model: str) -> Refusal:
    """Refuse a request for which no other model is unloaded."""
    return Refusal(
        errors.MODEL_NOT_LOADED,
        f"The model {model!r} is not loaded, and other models are not unloaded to count tokens. "
        "Send a request to the model first, or estimate the count.",
    )


def response_out_of_reach(node: Node) -> Refusal:
    """Refuse a request for a response of a node that is unhealthy."""
    return Refusal(
        errors.FEASIBLE_NODE_UNHEALTHY,
        f"The response is on the node {node.name}, which is unhealthy "
        f"({node.trouble or 'not polled yet'}). Try again when it is back.",
    )


def response_lost(node: str, model: str) -> Refusal:
    """Refuse a request for a response whose engine has ended."""
    return Refusal(
        errors.RESPONSE_NOT_FOUND,
        f"The response was made on the node {node}, which does not have the model {model!r} "
        "loaded any more. Send the request again to have a new one made.",
    )
