"""Who holds a node's memory, and who of them may be asked to leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cortexd.config.catalogue import DEFAULT_PRIORITY, Profile
from cortexd.config.units import Duration
from cortexd.fleet.memory import RESIDENT, believed, places, size, totals
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, unservable
from cortexd.wire.neuron import LOADED, LOADING

LEAST_RESIDENCY: Final = 15.0  # seconds that a model stays after its first answer, at least
LEAVING: Final = -1.0  # earlier than any use
RECENT: Final = 600.0  # seconds for which a request protects a model from loads nobody asked for


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
    there = totals(node.hardware)
    reported = node.busy if now - node.health_at <= snapshot.policy.stale_after else {}
    promised = {
        model: promise.devices
        for (name, model), promise in ledger.promises.items()
        if name == node.name and promise.devices
    }
    found = []
    for model, info in node.models.items():
        if info.status not in RESIDENT:
            continue
        key = (node.name, model)
        profile = snapshot.catalogue.profiles.get(model)
        if (devices := promised.pop(model, None)) is not None:
            on, mb = _promised(devices)
        else:
            on = places(info.devices, there)
            mb = _share(size(info, node, snapshot, ledger), on)
        busy = ledger.in_flight.get(key) or key in ledger.turns or reported.get(model)
        if model in ledger.loading and unservable(info) is None:
            busy = True  # its node was away: who waits for another copy comes back to this one
        kept = _kept(key, info.status, snapshot, ledger, now)
        if unasked and kept is None:
            kept = _preferred(key, profile, snapshot, ledger, now)
        priority = profile.priority if profile is not None else DEFAULT_PRIORITY
        found.append(
            Resident(
                node.name,
                model,
                on,
                mb,
                priority,
                last_use(key, ledger),
                bool(busy),
                kept,
                is_spared=ledger.spared.get(key, 0.0) > now,
                is_stubborn=bool(busy) and ledger.stubborn.get(key, 0.0) > now,
            )
        )
    for model, devices in promised.items():  # loads that the node does not show yet
        profile = snapshot.catalogue.profiles.get(model)
        on, mb = _promised(devices)
        kept = _kept((node.name, model), LOADING, snapshot, ledger, now)
        priority = profile.priority if profile is not None else DEFAULT_PRIORITY
        found.append(Resident(node.name, model, on, mb, priority, kept=kept))
    found.sort(key=_age)
    return found


def last_use(key: tuple[str, str], ledger: Ledger) -> float:
    """Of a (node, model), as `Resident` has it.

    What gets nothing new on its way out comes before all others, whatever it has just finished:
    were another one chosen then, each would be on its way in turns and none would ever leave.
    """
    if key[0] in ledger.gates.get(key[1], ()):
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


def _preferred(
    key: tuple[str, str],
    profile: Profile | None,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
) -> str | None:
    """What keeps a model from loads that nobody asked for."""
    if profile is not None and profile.copies:
        # Two that both want to stay would drive out one another for ever.
        return "it is kept by its profile, too"
    ttl = idle_ttl(profile, snapshot)
    ttl = RECENT if ttl is None else ttl
    used = ledger.last_access.get(key)
    if used is not None and now - used < ttl:
        return f"it was asked for in the last {Duration(ttl)}"
    return None


def _share(mb: float | None, devices: tuple[int, ...]) -> float | None:
    return mb / len(devices) if mb is not None and devices else None


def _promised(devices: Mapping[int, float]) -> tuple[tuple[int, ...], float | None]:
    return tuple(sorted(devices)), max(believed(mb) or 0.0 for mb in devices.values())


def _age(resident: Resident) -> tuple[float, str]:
    return resident.last_use, resident.model
