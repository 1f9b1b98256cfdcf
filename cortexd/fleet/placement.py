"""Where a catalogue model goes, who has to leave for it, and what to ask the node for.

Most models fit somewhere: who is resident is looked at only when no node has room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import itemgetter
from typing import Final

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.memory import footprint, free, headroom, totals
from cortexd.fleet.residents import at_a_glance, may_displace, residents, stays
from cortexd.fleet.room import gains, make_room
from cortexd.fleet.snapshot import Failure, Ledger, Node, Snapshot
from cortexd.wire.neuron import Discovery, LoadRequest

MOST_NAMES: Final = 8  # of what stands in the way, in words
ROUNDED: Final = 1 - 1e-9  # of what is short: the same sums may be rounded otherwise elsewhere

# how hard it is to have them leave, place in `pinned_on`, how many do, their latest use, less the
# MiB free, node
_Loss = tuple[int, int, int, float, float, str]


class Placement(msgspec.Struct, frozen=True):
    """A node to load on, and the request that does it.

    needs: device → MiB that the model will take there, as far as is known.
    victims: idle models that must go first. blockers: busy ones that stand in the way as well.
    """

    node: str
    spec: LoadRequest
    needs: Mapping[int, float] = {}
    victims: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()


class Assessment(msgspec.Struct, frozen=True):
    """What speaks for one node as the place of a model, and what against it.

    infeasible: why it can never hold it. absent: why it can't be used now. failure: a load that
    failed there a moment ago; it is not tried again before that has passed.
    free: device → MiB for new loads. share: MiB that the model takes on each of its devices; None:
    unknown.
    devices: the best ones for it, ascending. fits: there is room on them now.
    victims: idle models that must go first. blockers: those that stand in the way as well and only
    need time. is_stubborn: one of these did not come to an end a moment ago, though it got nothing
    new. last_use: the latest of theirs, monotonic.
    crowded: why there is no room, and waiting makes none.
    """

    node: str
    infeasible: str | None = None
    absent: str | None = None
    failure: Failure | None = None
    free: Mapping[int, float] = {}
    share: float | None = None
    devices: tuple[int, ...] = ()
    fits: bool = False
    victims: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()
    is_stubborn: bool = False
    last_use: float = 0.0
    crowded: str | None = None

    @property
    def needs(self) -> dict[int, float]:
        """Device → MiB that the model will take there; empty: unknown."""
        return {} if self.share is None else dict.fromkeys(self.devices, self.share)

    @property
    def free_mb(self) -> float:
        """MiB that are free on the chosen devices together."""
        return sum(self.free[index] for index in self.devices)


class NoPlacement(msgspec.Struct, frozen=True):
    """Why a model goes nowhere now.

    asleep: nodes that could hold it, or might, but are unhealthy, draining or not described.
    failures: nodes that could hold it, where a load failed a moment ago.
    infeasible: the other nodes, each with the reason why it can never hold it.
    crowded: nodes that could hold it, where everything in the way is protected; and how.
    """

    asleep: dict[str, str]
    failures: dict[str, Failure]
    infeasible: dict[str, str]
    crowded: dict[str, str] = msgspec.field(default_factory=dict)


def infeasibility(profile: Profile, node: Node) -> str | None:
    """Why `node` can never hold the model, in words; None: it can, as far as is known."""
    return _infeasibility(profile, node, fitting_devices(profile, node.hardware))


def _infeasibility(profile: Profile, node: Node, fitting: list[int]) -> str | None:
    if profile.pinned_on and node.name not in profile.pinned_on:
        return "not in pinned_on"
    hardware = node.hardware
    if hardware is None:
        return None
    if hardware.cuda_unavailable_reason is not None:
        return f"can load nothing: {hardware.cuda_unavailable_reason}"
    if hardware.harnesses and profile.harness not in hardware.harnesses:
        return f"has no harness {profile.harness!r}, only {', '.join(hardware.harnesses)}"
    if len(fitting) < profile.min_devices:
        return (
            f"{_count(profile.min_devices)} of {device_floor(profile):g} MiB or more needed, "
            f"it has {_described(hardware)}"
        )
    return None


def device_floor(profile: Profile) -> float:
    """MiB that each of the model's devices must have in total."""
    share = profile.vram_mb / profile.min_devices if profile.vram_mb else 0
    return max(profile.min_device_vram_mb, share)


def fitting_devices(profile: Profile, hardware: Discovery | None) -> list[int]:
    """The indices of those that are large enough for the model's share, ascending."""
    floor = device_floor(profile)
    return sorted(index for index, mb in totals(hardware).items() if mb >= floor)


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
        model_id=f"{profile.source}:{profile.id}" if profile.source else profile.id,
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
    """Choose the node and the devices for a load, and who has to leave first. `now` is monotonic.

    Where there is room comes first: earlier in `pinned_on`, then most memory free, then by name.
    Only when no node has room: earlier in `pinned_on`, then where the fewest have to leave, those
    that were used least recently. Who works, or has only just come, is asked last, and after them
    who went on working when that was tried.

    A node where the load failed lately is passed over until its back-off has ended; nodes in
    `avoid` are never looked at. unasked: no request has asked for this load.
    """
    nothing = NoPlacement({}, {}, {})
    fitting: list[Assessment] = []
    full: list[Assessment] = []
    for node in _candidates(profile, snapshot):
        if node.name in avoid:
            continue
        seen = glance(profile, node, snapshot, ledger, now)
        if seen.infeasible is not None:
            nothing.infeasible[node.name] = seen.infeasible
        elif seen.absent is not None:
            nothing.asleep[node.name] = seen.absent
        elif seen.failure is not None:
            nothing.failures[node.name] = seen.failure
        else:
            (fitting if seen.fits else full).append(seen)
    rank = _rank(profile)
    best = min(fitting, key=lambda seen: (rank(seen.node), -seen.free_mb, seen.node), default=None)
    if best is None and snapshot.policy.evicts:
        best = _least_loss(full, profile, snapshot, ledger, now, unasked=unasked)
    if best is None:
        for seen in full:
            words = _crowd(seen, profile, snapshot, ledger, now, unasked=unasked)
            nothing.crowded[seen.node] = words
        return nothing
    spec = load_request(profile, snapshot.nodes[best.node].hardware, best.devices)
    return Placement(best.node, spec, best.needs, best.victims, best.blockers)


def assess(
    profile: Profile,
    node: Node,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool = False,
) -> Assessment:
    """What `place` thinks of one node of the snapshot; of one that backs off, too."""
    seen = glance(profile, node, snapshot, ledger, now)
    if seen.infeasible is not None or seen.absent is not None or seen.fits:
        return seen
    cleared = _cleared(seen, profile, snapshot, ledger, now, unasked=unasked)
    if cleared is None:
        words = _crowd(seen, profile, snapshot, ledger, now, unasked=unasked)
        return msgspec.structs.replace(seen, crowded=words)
    return cleared


def glance(
    profile: Profile, node: Node, snapshot: Snapshot, ledger: Ledger, now: float
) -> Assessment:
    """The same without a look at who is resident: nobody leaves for it."""
    fitting = fitting_devices(profile, node.hardware)
    if (reason := _infeasibility(profile, node, fitting)) is not None:
        return Assessment(node.name, infeasible=reason)
    if (reason := _absence(node)) is not None:
        return Assessment(node.name, absent=reason)
    failed = ledger.failures.get((node.name, profile.id))
    left = free(node, snapshot, ledger, besides=profile.id)
    # Those with most memory free are the best set, if any set has room.
    chosen = sorted(fitting, key=left.__getitem__, reverse=True)[: profile.min_devices]
    size = footprint(profile, node, ledger)
    share = None if size is None else size / profile.min_devices
    return Assessment(
        node.name,
        failure=failed if failed is not None and failed.until > now else None,
        free=left,
        share=share,
        devices=tuple(sorted(chosen)),
        fits=share is None or left[chosen[-1]] >= share,
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
        cleared = _cleared(seen, profile, snapshot, ledger, now, unasked=unasked)
        if cleared is None:
            continue
        blockers = len(cleared.blockers)
        count = len(cleared.victims) + blockers
        free_mb = -cleared.free_mb
        reluctance = (blockers > 0) + cleared.is_stubborn
        loss = reluctance, rank(seen.node), count, cleared.last_use, free_mb, seen.node
        if least is None or loss < least:
            best, least = cleared, loss
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
    short = [share - seen.free[index] for index in seen.devices if seen.free[index] < share]
    missing = sum(short) * ROUNDED
    for waits in (False,) if unasked else (False, True):
        if not (some := idle + others if waits else idle):
            continue
        uses, sizes, widths = zip(*some, strict=True)
        count = math.ceil(max(missing / max(sizes), len(short) / max(widths)))
        if sum(sizes) >= missing and len(some) >= count:
            last_use = sorted(uses)[count - 1]
            return waits, rank(seen.node), count, last_use, -seen.free_mb, seen.node
    return None


def _cleared(
    seen: Assessment,
    profile: Profile,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool,
) -> Assessment | None:
    """A node without room, once those have left who have to and may; None: it has none then."""
    node, share = snapshot.nodes[seen.node], seen.share or 0.0
    people = residents(node, snapshot, ledger, now, unasked=unasked)
    willing = [one for one in people if may_displace(profile, one)]
    if not willing:
        return None
    left, there = headroom(node, snapshot, ledger, besides=profile.id), totals(node.hardware)
    limits = {index: mb - node.reserve_mb for index, mb in there.items()}
    returns = gains(people, left, limits)
    floor = device_floor(profile)
    usable = {i: left[i] for i, mb in limits.items() if mb >= share and there[i] >= floor}
    idle = [one for one in willing if one.is_idle]
    room = make_room(profile.min_devices, share, usable, returns, idle)
    if room is None and snapshot.policy.evicts and not unasked:
        # The others only need time; those who could leave at once are still asked first.
        others = [one for one in willing if not one.is_idle and not one.is_stubborn]
        room = make_room(profile.min_devices, share, usable, returns, idle + others)
        if room is None:
            others += [one for one in willing if one.is_stubborn]
            room = make_room(profile.min_devices, share, usable, returns, idle + others)
    if room is None:
        return None
    leaving = {one.model for one in room.leaving}
    return msgspec.structs.replace(
        seen,
        devices=room.devices,
        victims=tuple(one.model for one in willing if one.model in leaving and one.is_idle),
        blockers=tuple(one.model for one in willing if one.model in leaving and not one.is_idle),
        is_stubborn=any(one.is_stubborn for one in room.leaving),
        last_use=room.last_use,
    )


def _crowd(
    seen: Assessment,
    profile: Profile,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool,
) -> str:
    """What is in the way, by name, and why it stays."""
    node, share = snapshot.nodes[seen.node], seen.share or 0.0
    held = stays(profile, node, snapshot, ledger, now, unasked=unasked)
    ways = [
        f"{model!r} ({why or f'class {priority}, above {profile.priority}'})"
        for model, priority, why in held[:MOST_NAMES]
    ]
    count = len(held)
    most = sorted(totals(node.hardware).values())[-profile.min_devices] - node.reserve_mb
    if not held or most < share:
        reserve = f" besides reserve_mb = {node.reserve_mb:g}" if node.reserve_mb else ""
        ways.append(f"what is not a model's, of {max(0.0, most):.0f} MiB there are{reserve}")
        count += 1
    rest = f" and {count - MOST_NAMES} more" if count > MOST_NAMES else ""
    free_mb = min(seen.free[index] for index in seen.devices)
    return (
        f"{share:.0f} MiB needed on {_count(profile.min_devices)}, {free_mb:.0f} free; in the "
        f"way: {', '.join(ways[:MOST_NAMES])}{rest}"
    )


def _candidates(profile: Profile, snapshot: Snapshot) -> list[Node]:
    rank = _rank(profile)
    return sorted(snapshot.nodes.values(), key=lambda node: (rank(node.name), node.name))


def _rank(profile: Profile) -> Callable[[str], int]:
    """A node's place in `pinned_on`; all others come after those."""
    places = {name: place for place, name in enumerate(profile.pinned_on)}
    return lambda name: places.get(name, len(places))


def _absence(node: Node) -> str | None:
    if not node.healthy:
        return f"unhealthy ({node.trouble or 'not polled yet'})"
    if node.draining:
        return "draining"
    return None if node.hardware is not None else "not described yet"


def _count(devices: int) -> str:
    return f"{devices} device{'s' if devices > 1 else ''}"


def _described(hardware: Discovery) -> str:
    sizes = ", ".join(f"{mb:g}" for mb in totals(hardware).values())
    return f"{_count(len(totals(hardware)))} of {sizes} MiB" if sizes else "none"
