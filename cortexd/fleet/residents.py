"""Who holds a node's memory, and who of them may be asked to leave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from cortexd.config.catalogue import DEFAULT_PRIORITY, Profile
from cortexd.config.units import Duration
from cortexd.fleet.memory import RESIDENT, places, size, totals
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, unservable
from cortexd.wire.neuron import LOADED, LOADING

LEAST_RESIDENCY: Final = 15.0  # seconds that a model stays after its first answer, at least
LEAVING: Final = -1.0  # earlier than any use
RECENT: Final = 600.0  # seconds for which a request protects a model from loads nobody asked for

# Of a resident: its latest use, MiB that it holds at most, and on how many devices at most.
Sketch = tuple[float, float, int]


class Resident(msgspec.Struct, frozen=True):
    """A model that holds memory of a node, or is about to.

    mb: MiB on each of its devices; None: unknown.
    last_use: monotonic seconds of its last request through us; 0: never; LEAVING: it gets none.
    busy: requests run there, or wait for their turn.
    kept: why it may not be unloaded now, whoever wants to; None: nothing is against it.
    is_spared: it would not leave a moment ago, and is not asked again so soon.
    is_stubborn: it went on working a moment ago though it got nothing new.
    """

    node: str
    model: str
    devices: tuple[int, ...] = ()
    mb: float | None = None
    priority: int = DEFAULT_PRIORITY
    last_use: float = 0.0
    busy: bool = False
    kept: str | None = None
    is_spared: bool = False
    is_stubborn: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it could be unloaded at once."""
        return not self.busy and self.kept is None


def residents(
    node: Node, snapshot: Snapshot, ledger: Ledger, now: float, *, unasked: bool = False
) -> list[Resident]:
    """The models that hold memory of `node`, or were promised some, least recently used first.

    now: monotonic seconds. unasked: as seen by a load that no request has asked for.

    A model is kept for its least residency from its first answer on, and before that by those who
    wait for this answer, from the very moment that it is loaded.
    """
    there, profiles, found = totals(node.hardware), snapshot.catalogue.profiles, []
    for used, model, status in _aged(node, ledger):
        profile, promise = profiles.get(model), ledger.promises.get((node.name, model))
        on: tuple[int, ...]
        mb: float | None
        if promise is not None and promise.devices:
            on, mb = tuple(sorted(promise.devices)), max(promise.devices.values())
        else:
            info = node.models[model]
            on, whole = places(info.devices, there), size(info, node, snapshot, ledger)
            mb = whole / len(on) if whole is not None and on else None
        priority = profile.priority if profile is not None else DEFAULT_PRIORITY
        ties = _ties(model, status, node, snapshot, ledger, now, unasked=unasked)
        found.append(Resident(node.name, model, on, mb, priority, used, *ties))
    return found


def stays(
    profile: Profile,
    node: Node,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool = False,
) -> list[tuple[str, int, str | None]]:
    """Who does not leave at once for that model: id, class, and why; None: its class is above.

    Least recently used first. Of those that the class rules out nothing else is found out.
    """
    profiles, mine = snapshot.catalogue.profiles, profile.priority
    held: list[tuple[str, int, str | None]] = []
    for _, model, status in _aged(node, ledger):
        its = profiles[model].priority if model in profiles else DEFAULT_PRIORITY
        if its > mine:
            held.append((model, its, None))
            continue
        ties = _ties(model, status, node, snapshot, ledger, now, unasked=unasked)
        busy, kept, is_spared, _ = ties
        if busy or kept is not None or is_spared or model == profile.id:
            held.append((model, its, kept or "it is at work"))
    return held


def at_a_glance(
    profile: Profile,
    node: Node,
    classes: Mapping[str, int],
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool = False,
) -> tuple[list[Sketch], list[Sketch]]:
    """Who could go at once for that model, and who could later, without a look at everything: none
    of those is missing, but some may turn out to stay. classes: of the catalogue's models."""
    name, mine, policy, promises = node.name, profile.priority, snapshot.policy, ledger.promises
    in_flight, counted, served = ledger.in_flight.get, ledger.counted.get, ledger.served.get
    reported = node.busy if now - node.health_at <= policy.stale_after else {}
    least = LEAST_RESIDENCY if policy.min_residency is None else policy.min_residency
    every, never = len(totals(node.hardware)), -math.inf
    idle: list[Sketch] = []
    others = [(0.0, math.inf, every) for on, _ in promises if on == name]
    for model, info in node.models.items():
        if info.status not in RESIDENT or classes.get(model, DEFAULT_PRIORITY) > mine:
            continue
        key = name, model
        is_idle = not (
            info.status != LOADED
            or in_flight(key)
            or reported.get(model, 0) > counted(key, 0)
            or served(key, never) + least > now
            or (unasked and _preferred(key, snapshot, ledger, now))
        )
        mb, width = info.vram_used_mb or math.inf, len(info.devices or ()) or every
        if promises and key in promises:
            mb, width = math.inf, every
        (idle if is_idle else others).append((last_use(key, ledger), mb, width))
    return idle, others


def last_use(key: tuple[str, str], ledger: Ledger) -> float:
    """Of a (node, model), as `Resident` has it.

    What gets nothing new on its way out comes before all others, whatever it has just finished:
    were another one chosen then, each would be on its way in turns and none would ever leave.
    """
    if ledger.is_gated(*key):
        return LEAVING
    return ledger.last_access.get(key, 0.0)


def may_displace(profile: Profile, resident: Resident) -> bool:
    """Whether a newcomer's class allows it; equals may, that is a swap."""
    return (
        resident.model != profile.id
        and resident.priority <= profile.priority
        and not resident.is_spared
    )


def displaceable(
    profile: Profile,
    node: Node,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool = False,
) -> list[Resident]:
    """Who could go at once for that model, the least recently used first."""
    return [
        resident
        for resident in residents(node, snapshot, ledger, now, unasked=unasked)
        if resident.is_idle and may_displace(profile, resident)
    ]


def least_residency(key: tuple[str, str], snapshot: Snapshot, ledger: Ledger) -> float:
    """Seconds for which a (node, model) stays after its first answer."""
    if snapshot.policy.min_residency is not None:
        return snapshot.policy.min_residency
    return max(LEAST_RESIDENCY, 2 * ledger.load_seconds.get(key, 0.0))


def idle_ttl(profile: Profile | None, snapshot: Snapshot) -> float | None:
    """Seconds after its last request when a model is no longer wanted; None: it always is."""
    if profile is not None and profile.idle_ttl is not None:
        return profile.idle_ttl
    return snapshot.policy.idle_ttl


def _aged(node: Node, ledger: Ledger) -> list[tuple[float, str, str | None]]:
    """Latest use, id and status of those that hold memory there or were promised some, in order;
    None: a load that the node does not show yet."""
    name = node.name
    found: list[tuple[float, str, str | None]] = [
        (last_use((name, model), ledger), model, info.status)
        for model, info in node.models.items()
        if info.status in RESIDENT
    ]
    if ledger.promises:
        shown = {model for _, model, _ in found}
        found += [
            (0.0, model, None)
            for (on, model), promise in ledger.promises.items()
            if on == name and promise.devices and model not in shown
        ]
    return sorted(found)


def _ties(
    model: str,
    status: str | None,
    node: Node,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
    *,
    unasked: bool,
) -> tuple[bool, str | None, bool, bool]:
    """Whether it is busy, why it may not be unloaded, whether it is spared, whether it is stubborn;
    see `Resident`."""
    key = node.name, model
    kept = _kept(key, status or LOADING, snapshot, ledger, now)
    if status is None:
        return False, kept, False, False
    if unasked and kept is None:
        kept = _preferred(key, snapshot, ledger, now)
    busy = (
        bool(ledger.in_flight.get(key))
        or key in ledger.turns
        # By its last report, less those of ours that it counted: of these we know the ends.
        or (
            node.busy.get(model, 0) > ledger.counted.get(key, 0)
            and now - node.health_at <= snapshot.policy.stale_after
        )
        # Its node was away: who waits for another copy comes back to this one.
        or (model in ledger.loading and unservable(node.models[model]) is None)
    )
    is_stubborn = busy and ledger.stubborn.get(key, 0.0) > now
    return busy, kept, ledger.spared.get(key, 0.0) > now, is_stubborn


def _kept(
    key: tuple[str, str], status: str, snapshot: Snapshot, ledger: Ledger, now: float
) -> str | None:
    if not snapshot.policy.evicts:
        return "eviction is turned off"
    if status != LOADED:
        return f"it is {status}"
    if ledger.spared.get(key, 0.0) > now:
        return "it would not leave a moment ago"
    if (served := ledger.served.get(key)) is not None:
        left = served + least_residency(key, snapshot, ledger) - now
        if left > 0:
            return f"it has only just begun to serve: {left:.0f} s left of its min_residency"
    elif key in ledger.in_flight or key in ledger.turns:
        # Who has waited for its load would wait for another one.
        return "it is at work, and has answered nobody yet"
    return None


def _preferred(key: tuple[str, str], snapshot: Snapshot, ledger: Ledger, now: float) -> str | None:
    """What keeps a model from loads that nobody asked for."""
    profile = snapshot.catalogue.profiles.get(key[1])
    if profile is not None and profile.copies:
        # Two that both want to stay would drive out one another for ever.
        return "it is kept by its profile, too"
    ttl = idle_ttl(profile, snapshot)
    ttl = RECENT if ttl is None else ttl
    used = ledger.last_access.get(key)
    if used is not None and now - used < ttl:
        return f"it was asked for in the last {Duration(ttl)}"
    return None
