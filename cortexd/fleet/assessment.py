"""What one node can do for a model: whether it could ever hold it, whether there is room now, and
who would have to leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.loadable import has_file, no_file_reason
from cortexd.fleet.memory import footprint, free, headroom, totals, with_freed
from cortexd.fleet.residents import may_displace, residents, stays
from cortexd.fleet.room import gains, make_room
from cortexd.fleet.snapshot import Failure, Ledger, Node, Snapshot
from cortexd.wire.neuron import Discovery

MOST_NAMES: Final = 8  # of what stands in the way, in words


class Assessment(msgspec.Struct, frozen=True):
    """How suitable one node is for a model.

    infeasible: why it can never hold it. absent: why it can't be used now. failure: a load that
    failed there lately; it is not tried again before its back-off has ended.
    has_file: the node says that it has the model's file; False: it does not say.
    free: device → MiB for new loads. share: MiB that the model takes on each of its devices; None:
    unknown.
    devices: the best ones for it, ascending. fits: there is room on them now. fits_soon: there will
    be once the node has reported the memory of unloaded models.
    victims: idle models to unload first. blockers: busy models in the way, which need time.
    is_stubborn: one of these did not become idle lately, though it got no new requests.
    last_use: the latest of theirs, monotonic.
    crowded: why there is no room and waiting makes none.
    """

    node: str
    infeasible: str | None = None
    absent: str | None = None
    failure: Failure | None = None
    has_file: bool = False
    free: Mapping[int, float] = {}
    share: float | None = None
    devices: tuple[int, ...] = ()
    fits: bool = False
    fits_soon: bool = False
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


def infeasibility(profile: Profile, node: Node) -> str | None:
    """Return why the devices of `node` can never hold the model; None: they can, or may."""
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
    if seen.infeasible is not None or seen.absent is not None or seen.fits or seen.fits_soon:
        return seen
    room = cleared(seen, profile, snapshot, ledger, now, unasked=unasked)
    if room is None:
        words = crowd(seen, profile, snapshot, ledger, now, unasked=unasked)
        return msgspec.structs.replace(seen, crowded=words)
    return room


def glance(
    profile: Profile, node: Node, snapshot: Snapshot, ledger: Ledger, now: float
) -> Assessment:
    """The same without a look at who is resident: nobody leaves for it."""
    fitting = fitting_devices(profile, node.hardware)
    reason = _infeasibility(profile, node, fitting) or no_file_reason(profile, node, ledger)
    if reason is not None:
        return Assessment(node.name, infeasible=reason)
    is_there = has_file(profile, node) is True
    if (reason := absence(node)) is not None:
        return Assessment(node.name, absent=reason, has_file=is_there)
    size = footprint(profile, node, ledger)
    share = None if size is None else size / profile.min_devices
    if share is not None and (reason := _shortage(profile, node, fitting, share)) is not None:
        return Assessment(node.name, infeasible=reason)
    failed = ledger.failures.get((node.name, profile.id))
    left = free(node, snapshot, ledger, besides=profile.id)
    # Those with most memory free are the best set, if any set has room.
    chosen = sorted(fitting, key=left.__getitem__, reverse=True)[: profile.min_devices]
    fits, fits_soon = share is None or left[chosen[-1]] >= share, False
    if share is not None and not fits and node.name in ledger.freed:
        there = with_freed(headroom(node, snapshot, ledger, besides=profile.id), node, ledger)
        soon = sorted(fitting, key=there.__getitem__, reverse=True)[: profile.min_devices]
        if there[soon[-1]] >= share:
            chosen, fits_soon = soon, True
    return Assessment(
        node.name,
        failure=failed if failed is not None and failed.until > now else None,
        has_file=is_there,
        free=left,
        share=share,
        devices=tuple(sorted(chosen)),
        fits=fits,
        fits_soon=fits_soon,
    )


def cleared(
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
    left = with_freed(headroom(node, snapshot, ledger, besides=profile.id), node, ledger)
    there = totals(node.hardware)
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


def crowd(
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
    if not held:
        most = sorted(totals(node.hardware).values())[-profile.min_devices] - node.reserve_mb
        reserve = f" besides reserve_mb = {node.reserve_mb:g}" if node.reserve_mb else ""
        ways.append(f"what is not a model's, of {max(0.0, most):.0f} MiB there are{reserve}")
        count += 1
    rest = f" and {count - MOST_NAMES} more" if count > MOST_NAMES else ""
    free_mb = min(seen.free[index] for index in seen.devices)
    return (
        f"{share:.0f} MiB needed on {_count(profile.min_devices)}, {free_mb:.0f} free; in the "
        f"way: {', '.join(ways[:MOST_NAMES])}{rest}"
    )


def _shortage(profile: Profile, node: Node, fitting: list[int], share: float) -> str | None:
    """Return why the model would not fit on an empty node; `share`: MiB on each device."""
    there = totals(node.hardware)
    most = sorted(there[index] for index in fitting)[-profile.min_devices] - node.reserve_mb
    if most >= share:
        return None
    reserve = f" besides reserve_mb = {node.reserve_mb:g}" if node.reserve_mb else ""
    return (
        f"{share:.0f} MiB needed on {_count(profile.min_devices)}, at most {max(0.0, most):.0f} "
        f"there{reserve}"
    )


def absence(node: Node) -> str | None:
    """Return why `node` can't be used now; None: it can."""
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
