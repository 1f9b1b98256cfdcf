"""Where a catalogue model goes, who has to leave for it, and what to ask the node for: the choice
among the nodes, each of which `assessment` looks at.

Most models fit somewhere: who is resident is looked at only when no node has room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import itemgetter
from typing import Final

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.assessment import Assessment, cleared, crowd, fitting_devices, glance
from cortexd.fleet.memory import with_freed
from cortexd.fleet.residents import at_a_glance
from cortexd.fleet.snapshot import Failure, Ledger, Node, Snapshot
from cortexd.wire.neuron import Discovery, LoadRequest

ROUNDED: Final = 1 - 1e-9  # of what is short: the same sums may be rounded otherwise elsewhere

# whether it may lack the file, how hard it is to make room there, place in `pinned_on`, number of
# models to unload, their latest use, less the MiB free, node
_Loss = tuple[bool, int, int, int, float, float, str]


class Placement(msgspec.Struct, frozen=True):
    """A node to load on, and the load request for it.

    needs: device → MiB that the model will take there, as far as is known.
    victims: idle models to unload first. blockers: busy ones in the way.
    awaits_memory: there is room once the node has reported the memory of unloaded models.
    """

    node: str
    spec: LoadRequest
    needs: Mapping[int, float] = {}
    victims: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()
    awaits_memory: bool = False

    @property
    def has_room(self) -> bool:
        """Return whether the load can begin at once."""
        return not (self.victims or self.blockers or self.awaits_memory)


class NoPlacement(msgspec.Struct, frozen=True):
    """Why a model can't be placed now.

    asleep: nodes that could hold it, or might, but are unhealthy, draining or not described.
    failures: nodes that could hold it, where a load failed lately.
    infeasible: the other nodes, each with the reason why it can never hold it.
    crowded: nodes that could hold it, where everything in the way is protected; and how.
    holders: those of `asleep` that said that they have its file.
    """

    asleep: dict[str, str]
    failures: dict[str, Failure]
    infeasible: dict[str, str]
    crowded: dict[str, str] = msgspec.field(default_factory=dict)
    holders: set[str] = msgspec.field(default_factory=set)


def load_request(
    profile: Profile, hardware: Discovery | None, devices: Iterable[int] = ()
) -> LoadRequest:
    """The profile as a node reads it, on those devices. Total: when none are chosen they are the
    first that are large enough; without a usable topology the first `min_devices`, and the node has
    the last word."""
    devices = sorted(devices)
    if not devices:
        devices = fitting_devices(profile, hardware)
    if len(devices) < profile.min_devices:
        devices = list(range(profile.min_devices))
    return LoadRequest(
        model_id=profile.load_name,
        harness=profile.harness,
        quant=profile.quant,
        tensor_parallel=profile.min_devices if profile.min_devices > 1 else None,
        devices=devices[: profile.min_devices],
    )


def place(
    profile: Profile,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    avoid: Collection[str] = (),
    *,
    unasked: bool = False,
) -> Placement | NoPlacement:
    """Choose the node and the devices for a load, and the models to unload for it.

    Nodes with room come first, ordered by `pinned_on`, then whether they say that they have the
    file, then most free memory, then name. Nodes follow, in the same order, where enough memory is
    coming. If there are none: nodes that say that they have the file, then `pinned_on`, then those
    where the fewest models must be unloaded, the least recently used. Nodes with busy or fresh
    models in the way are last; of these, the ones where a busy model did not become idle lately.
    A node that is known to lack the file is infeasible: nothing is evicted there.

    A node where the load failed lately is left out until its back-off has ended; so are nodes in
    `avoid`. unasked: no request has asked for this load. now: monotonic.
    """
    nothing = NoPlacement({}, {}, {})
    fitting: list[Assessment] = []
    soon: list[Assessment] = []
    full: list[Assessment] = []
    for node in _candidates(profile, snapshot):
        if node.name in avoid:
            continue
        seen = glance(profile, node, snapshot, ledger, now)
        if seen.infeasible is not None:
            nothing.infeasible[node.name] = seen.infeasible
        elif seen.absent is not None:
            nothing.asleep[node.name] = seen.absent
            if seen.has_file:
                nothing.holders.add(node.name)
        elif seen.failure is not None:
            nothing.failures[node.name] = seen.failure
        else:
            (fitting if seen.fits else soon if seen.fits_soon else full).append(seen)
    rank = _rank(profile)
    best = min(
        fitting or soon,
        key=lambda seen: (rank(seen.node), not seen.has_file, -seen.free_mb, seen.node),
        default=None,
    )
    if best is None and snapshot.policy.evicts:
        best = _least_loss(full, profile, snapshot, ledger, now, unasked=unasked)
    if best is None:
        for seen in full:
            words = crowd(seen, profile, snapshot, ledger, now, unasked=unasked)
            nothing.crowded[seen.node] = words
        return nothing
    spec = load_request(profile, snapshot.nodes[best.node].hardware, best.devices)
    return Placement(
        best.node, spec, best.needs, best.victims, best.blockers, awaits_memory=best.fits_soon
    )


def _least_loss(
    full: list[Assessment],
    profile: Profile,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool,
) -> Assessment | None:
    """The node where making room costs least; None: there is none to make."""
    rank = _rank(profile)
    classes = {model: other.priority for model, other in snapshot.catalogue.profiles.items()}
    promising = []
    for seen in full:
        bound = _at_least(seen, profile, rank, classes, snapshot, ledger, now, unasked=unasked)
        if bound is not None:
            promising.append((bound, seen))
    best: Assessment | None = None
    least: _Loss | None = None
    # The most promising first: most of a large fleet need not be looked at closely.
    for bound, seen in sorted(promising, key=itemgetter(0)):
        if least is not None and least <= bound:
            break
        room = cleared(seen, profile, snapshot, ledger, now, unasked=unasked)
        if room is None:
            continue
        blockers = len(room.blockers)
        count = len(room.victims) + blockers
        free_mb = -room.free_mb
        reluctance = (blockers > 0) + room.is_stubborn
        rank_here = rank(seen.node)
        loss = not seen.has_file, reluctance, rank_here, count, room.last_use, free_mb, seen.node
        if least is None or loss < least:
            best, least = room, loss
    return best


def _at_least(
    seen: Assessment,
    profile: Profile,
    rank: Callable[[str], int],
    classes: Mapping[str, int],
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool,
) -> _Loss | None:
    """The least that room there can cost, without a close look; None: if all left who may, it would
    not be enough."""
    node, share = snapshot.nodes[seen.node], seen.share or 0.0
    idle, others = at_a_glance(profile, node, classes, snapshot, ledger, now, unasked=unasked)
    free = [seen.free[index] for index in seen.devices]
    if node.name in ledger.freed:  # other devices may be the best ones by then
        free = sorted(with_freed(seen.free, node, ledger).values())[-profile.min_devices :]
    short = [share - mb for mb in free if mb < share]
    missing = sum(short) * ROUNDED
    for waits in (False,) if unasked else (False, True):
        if not (some := idle + others if waits else idle):
            continue
        uses, sizes, widths = zip(*some, strict=True)
        count = max(1, math.ceil(max(missing / max(sizes), len(short) / max(widths))))
        if sum(sizes) >= missing and len(some) >= count:
            last_use = sorted(uses)[count - 1]
            rank_here = rank(seen.node)
            return not seen.has_file, waits, rank_here, count, last_use, -seen.free_mb, seen.node
    return None


def _candidates(profile: Profile, snapshot: Snapshot) -> list[Node]:
    rank = _rank(profile)
    return sorted(snapshot.nodes.values(), key=lambda node: (rank(node.name), node.name))


def _rank(profile: Profile) -> Callable[[str], int]:
    """A node's place in `pinned_on`; all others come after those."""
    places = {name: place for place, name in enumerate(profile.pinned_on)}
    return lambda name: places.get(name, len(places))
