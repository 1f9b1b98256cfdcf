"""Which of a model's replicas serves: the least busy ones, and among those the one that the
conversation was at before.

Never by name or by the order of a list: what comes between two polls would all go to one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from cortexd.fleet.snapshot import Fault, Ledger, Replica, Snapshot
from cortexd.wire.neuron import LOADED

SLACK: Final = 1.0  # how far a score may be from the lowest and still count as equal to it,
SHARE: Final = 0.25  # or as a share of the lowest, whichever is more
PENALTY: Final = 8.0  # of one failure: what answers errors at once looks idle
HALF_LIFE: Final = 5.0  # seconds
MOST_PENALTY: Final = 512.0  # else a replica that failed a crowd would be out for minutes
LEAST_PENALTY: Final = 0.25  # less than that is forgotten
SUSPECT_FOR: Final = 10.0  # seconds
# 2 ** 64 over the golden ratio: multiples of it are spread evenly, wherever one begins.
_STEP: Final = 0x9E3779B97F4A7C15
_RANGE: Final = 2**64
_ALL: Final = _RANGE - 1

Affinity = Callable[[], int | None]


def no_affinity() -> None:
    """The affinity of what belongs to nothing."""


def hashed(*parts: bytes) -> int:
    """64 bits, the same in every process."""
    state = blake2b(digest_size=8)
    for part in parts:
        state.update(b"%d:" % len(part))
        state.update(part)
    return int.from_bytes(state.digest(), "big")


def choose(
    replicas: list[Replica],
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    affinity: Affinity = no_affinity,
    turn: int = 0,
) -> Replica:
    """One of `replicas`, of which there is at least one. `now` is monotonic, as in the ledger.

    affinity: gives a hash, or None; asked only when several are equal. Who gives the same one goes
        to the same replica.
    turn: a number that goes up from request to request, for those without a key.
    """
    if len(replicas) == 1:
        return replicas[0]
    best = _preferred(replicas, ledger, now)
    if len(best) == 1:
        return best[0]
    scores = _scores(best, snapshot, ledger, now)
    lowest = min(scores)
    most = lowest + max(SLACK, SHARE * lowest)
    equals = best
    if max(scores) > most:  # else, as is usual, nothing has to be sorted out
        equals = [replica for replica, points in zip(best, scores, strict=True) if points <= most]
        if len(equals) == 1:
            return equals[0]
    key = affinity() if snapshot.policy.affinity else None
    return _in_turn(equals, snapshot, turn) if key is None else _by_key(equals, snapshot, key)


def score(
    replica: Replica, snapshot: Snapshot, ledger: Ledger, now: float, *, without: int = 0
) -> float:
    """How busy a replica is: requests per unit of its node's weight, and what its failures add.

    The requests are those in flight from here, or what its node last reported and what came and
    went from here since, whichever is more. without: that many of ours are left out.
    """
    (points,) = _scores([replica], snapshot, ledger, now)
    return points - without / snapshot.nodes[replica.node].weight


def _scores(replicas: list[Replica], snapshot: Snapshot, ledger: Ledger, now: float) -> list[float]:
    nodes, faults = snapshot.nodes, ledger.faults
    in_flight, counted = ledger.in_flight.get, ledger.counted.get
    oldest = now - snapshot.policy.stale_after
    scores = []
    for replica in replicas:
        name, model = key = replica.node, replica.model
        node = nodes[name]
        load = in_flight(key, 0)
        reported = node.busy.get(model)
        if reported and node.health_at >= oldest and (others := reported - counted(key, 0)) > 0:
            load += others
        points = load / node.weight
        if faults and (fault := faults.get(key)) is not None:
            points += penalty(fault, now)
        scores.append(points)
    return scores


def penalty(fault: Fault, now: float) -> float:
    """What is left of it."""
    return fault.penalty * math.exp2(-max(0.0, now - fault.at) / HALF_LIFE)


def is_suspect(fault: Fault | None, now: float) -> bool:
    """Whether that replica is chosen only when no other is left."""
    return fault is not None and fault.suspect_until > now


def is_over(fault: Fault, now: float) -> bool:
    """Whether it changes no choice any more."""
    return not is_suspect(fault, now) and penalty(fault, now) < LEAST_PENALTY


def worsened(before: Fault | None, now: float, *, suspect: bool) -> Fault:
    """After one more failure."""
    left, until = (penalty(before, now), before.suspect_until) if before else (0.0, 0.0)
    return Fault(
        penalty=min(left + PENALTY, MOST_PENALTY),
        at=now,
        suspect_until=now + SUSPECT_FOR if suspect else until,
    )


def _preferred(replicas: list[Replica], ledger: Ledger, now: float) -> list[Replica]:
    """Those that are no suspects, if there are any; of these the truly loaded ones."""
    if faults := ledger.faults:
        trusted = [r for r in replicas if not is_suspect(faults.get((r.node, r.model)), now)]
        replicas = trusted or replicas
    return [replica for replica in replicas if replica.status == LOADED] or replicas


def _by_key(replicas: list[Replica], snapshot: Snapshot, key: int) -> Replica:
    """Weighted rendezvous hashing: a replica more or less moves no key but its own share."""
    nodes = snapshot.nodes
    shortest, chosen = math.inf, replicas[0]
    for replica in replicas:
        name = replica.node
        # Both are good hashes; stirred, they are another one for each pair (as MurmurHash ends).
        drawn = key ^ _seed(name)
        drawn = (drawn ^ drawn >> 33) * 0xFF51AFD7ED558CCD & _ALL
        drawn = (drawn ^ drawn >> 33) * 0xC4CEB9FE1A85EC53 & _ALL
        straw = -math.log((drawn + 0.5) / _RANGE) / nodes[name].weight
        if straw < shortest:
            shortest, chosen = straw, replica
    return chosen


def _in_turn(replicas: list[Replica], snapshot: Snapshot, turn: int) -> Replica:
    """Each as often as its weight says, in whatever window one looks."""
    nodes = snapshot.nodes
    replicas = sorted(replicas, key=lambda replica: replica.node)
    weights = [nodes[replica.node].weight for replica in replicas]
    point = turn * _STEP % _RANGE / _RANGE * sum(weights)
    for replica, weight in zip(replicas, weights, strict=True):
        point -= weight
        if point < 0:
            return replica
    return replicas[-1]  # it was rounded


@lru_cache(maxsize=4096)
def _seed(node: str) -> int:
    return hashed(node.encode())
