"""What the gateway says of itself: /health, /ready, /version and the front door."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cortexd.fleet.snapshot import Snapshot
from cortexd.wire.neuron import LOADED

MAX_REASONS: Final = 50  # one node may have a thousand models that can't serve


class Condition(msgspec.Struct, frozen=True):
    """GET /health: the worst that is true, and the reasons for it, the first ones of very many."""

    status: Literal["ok", "degraded", "impaired"]
    reasons: list[str]


def condition(
    snapshot: Snapshot, longest_wait: float, bound: float, trouble: str | None = None
) -> Condition:
    """`impaired`: something resident can't serve, a request waits for longer than it may, or the
    last reload failed (`trouble` says why). `degraded`: a node is down. Times in seconds.
    """
    impaired = [] if trouble is None else [trouble]
    impaired += [
        f"model {replica.model} on {replica.node} can't serve: {replica.unservable}"
        for replicas in snapshot.replicas.values()
        for replica in replicas
        if replica.unservable is not None and snapshot.nodes[replica.node].healthy
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


def status_line(snapshot: Snapshot, in_flight: int, trouble: str | None = None) -> str:
    """The same in one line for `systemctl status`. trouble: why the last reload failed."""
    loaded = sum(
        any(replica.status == LOADED for replica in replicas)
        for replicas in snapshot.replicas.values()
    )
    line = (
        f"{snapshot.healthy} of {len(snapshot.nodes)} nodes up, {loaded} models, "
        f"{in_flight} in flight"
    )
    return line if trouble is None else f"{line}; {trouble}"
