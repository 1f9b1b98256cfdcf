"""What the gateway says of itself: /health, /ready, /version and the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from cortexd.fleet.snapshot import Ledger, Snapshot
from cortexd.wire.neuron import FAILED, LOADED

MAX_REASONS: Final = 50  # one node may have a thousand models that can't serve
NOTHING: Final[Mapping[tuple[str, str], float]] = MappingProxyType({})
NO_FAILURES: Final[Mapping[tuple[str, str], str]] = MappingProxyType({})


class Condition(msgspec.Struct, frozen=True):
    """GET /health: the worst that is true, and the reasons for it, the first ones of very many."""

    status: Literal["ok", "degraded", "impaired"]
    reasons: list[str]


def condition(
    snapshot: Snapshot,
    longest_wait: float,
    bound: float,
    problems: Sequence[str] = (),
    silent: Mapping[tuple[str, str], float] = NOTHING,
    failed: Mapping[tuple[str, str], str] = NO_FAILURES,
) -> Condition:
    """Return the gateway's condition. Times in seconds.

    `impaired`: the gateway itself has `problems`, something resident can't serve or is `silent`
    ((node, model) → age of its oldest request), a load `failed`, or a request has waited for longer
    than it may. `degraded`: a node is down.
    """
    impaired = [*problems]
    impaired += [
        f"model {replica.model} on {replica.node} can't serve: {replica.unservable}"
        for replicas in snapshot.replicas.values()
        for replica in replicas
        if replica.unservable is not None and snapshot.nodes[replica.node].healthy
    ]
    impaired += [
        f"model {model} on {node} has sent nothing for {age:.0f} s to the oldest of its requests"
        for (node, model), age in silent.items()
    ]
    impaired += [
        f"model {model} failed to load on {node}: {words}"
        for (node, model), words in failed.items()
    ]
    if longest_wait > bound:
        impaired.append(
            f"a request has waited for a model for {longest_wait:.0f} s; it should not for over "
            f"{bound:g} s"
        )
    degraded = [
        f"node {node.name} is down: {node.trouble or 'not polled yet'}"
        for node in snapshot.nodes.values()
        if not node.healthy
    ]
    status: Literal["ok", "degraded", "impaired"] = "ok"
    if degraded:
        status = "degraded"
    if impaired:
        status = "impaired"
    reasons = impaired + degraded
    if len(reasons) > MAX_REASONS:
        reasons[MAX_REASONS - 1 :] = [f"and {len(reasons) - MAX_REASONS + 1} more"]
    return Condition(status, reasons)


def failed_loads(snapshot: Snapshot, ledger: Ledger, now: float) -> dict[tuple[str, str], str]:
    """Return (node, model) → reason, for models that failed to load there. `now`: monotonic.

    A failure that a node reports lasts until the node reports something else; one that only the
    gateway has seen, until its back-off is over or the model is loaded somewhere.
    """
    failed = {
        (replica.node, replica.model): snapshot.nodes[replica.node].models[replica.model].error
        or "the node gives no reason"
        for replicas in snapshot.replicas.values()
        for replica in replicas
        if replica.status == FAILED and snapshot.nodes[replica.node].healthy
    }
    for key, failure in ledger.failures.items():
        if failure.until > now and not any(
            replica.status == LOADED and snapshot.nodes[replica.node].is_available
            for replica in snapshot.replicas.get(key[1], ())
        ):
            failed.setdefault(key, failure.message)
    return failed


def status_line(snapshot: Snapshot, in_flight: int, problems: Sequence[str] = ()) -> str:
    """Return the condition in one line for `systemctl status`. problems: of the gateway itself."""
    loaded = sum(
        any(replica.status == LOADED for replica in replicas)
        for replicas in snapshot.replicas.values()
    )
    line = (
        f"{snapshot.healthy} of {len(snapshot.nodes)} nodes up, {loaded} models, "
        f"{in_flight} in flight"
    )
    return "; ".join([line, *problems])
