"""How much memory a node has for a new load, and how much a model takes.

What a node reports has been through `sanity`; here nothing is checked a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cortexd.config.catalogue import Profile
from cortexd.fleet.snapshot import ANYWHERE, FootprintKey, Ledger, Node, Snapshot
from cortexd.wire.neuron import (
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    Discovery,
    Model,
)

# Statuses of models that hold memory of their node, or are about to.
RESIDENT: Final = frozenset({LOADED, RELOADING, LOADING, RECOVERING})
_MOST: Final = float(1 << 40)  # MiB; a footprint beyond that is none


def free(
    node: Node, snapshot: Snapshot, ledger: Ledger, *, besides: str | None = None
) -> dict[int, float]:
    """Device index → MiB that a new load may count on, never below 0.

    besides: a model whose own promise on that node does not count.
    """
    left = headroom(node, snapshot, ledger, besides=besides)
    return {index: mb if mb > 0 else 0.0 for index, mb in left.items()}


def headroom(
    node: Node, snapshot: Snapshot, ledger: Ledger, *, besides: str | None = None
) -> dict[int, float]:
    """As `free`, but below 0 where more is promised than there is: what a model gives back that
    has to go pays that debt first."""
    left = before(node, snapshot, ledger, besides=besides)
    for (name, model), promise in ledger.promises.items():
        if name == node.name and model != besides and promise.before is None:
            for index, mb in promise.devices.items():
                if index in left:
                    left[index] -= mb
    return left


def with_freed(left: Mapping[int, float], node: Node, ledger: Ledger) -> dict[int, float]:
    """Return `left` as it will be once the node has reported the memory of unloaded models."""
    coming = ledger.freed.get(node.name) if ledger.freed else None
    if coming is None:
        return dict(left)
    return {index: mb + coming.left.get(index, 0.0) for index, mb in left.items()}


def before(
    node: Node, snapshot: Snapshot, ledger: Ledger, *, besides: str | None = None
) -> dict[int, float]:
    """What is there for a load that begins now, as `Promise.before` wants it: the promises of loads
    that have not begun are not taken off."""
    left = reported_free(node, snapshot, ledger)
    if node.reserve_mb:
        left = {index: max(0.0, mb - node.reserve_mb) for index, mb in left.items()}
    for (name, model), promise in ledger.promises.items():
        if name == node.name and model != besides and promise.before is not None:
            for index, mb in promise.before.items():
                if index in left:
                    bound = max(0.0, mb - promise.devices.get(index, 0.0))
                    left[index] = min(left[index], bound)
    return left


def footprint(profile: Profile, node: Node, ledger: Ledger) -> float | None:
    """MiB that the whole model takes on that node: measured there, else the most that was measured
    on another one, else as its profile says, else None. Nothing and 0 are no measurement."""
    for where in (node.name, ANYWHERE) if ledger.footprints else ():
        key = FootprintKey(profile.id, profile.harness, profile.quant, profile.min_devices, where)
        if measured := _believed(ledger.footprints.get(key)):
            return measured
    return _believed(profile.vram_mb) or None


def size(info: Model, node: Node, snapshot: Snapshot, ledger: Ledger) -> float | None:
    """MiB that a resident model holds: as its node says, else its footprint; None: unknown."""
    if info.vram_used_mb:
        return info.vram_used_mb
    profile = snapshot.catalogue.profiles.get(info.id)
    return footprint(profile, node, ledger) if profile is not None else None


def totals(hardware: Discovery | None) -> dict[int, float]:
    """Device index → MiB in all."""
    devices = hardware.devices if hardware else ()
    return {device.index: float(device.vram_total_mb) for device in devices}


def places(indices: Iterable[int] | None, there: Mapping[int, float]) -> tuple[int, ...]:
    """The devices of a model among those of its node: all of them when it names none."""
    return tuple(sorted(there.keys() & (indices or ()) or there))


def reported_free(node: Node, snapshot: Snapshot, ledger: Ledger) -> dict[int, float]:
    """Return device index → MiB free by the node's gauges.

    Without gauges: what its models leave.
    """
    left = totals(node.hardware)
    silent = set(left)
    for gauge in (node.health and node.health.devices) or ():
        index, mb = gauge.index, gauge.vram_free_mb
        if (total := left.get(index)) is None:
            continue
        if mb is None and gauge.vram_used_mb is not None:
            mb = max(0.0, total - gauge.vram_used_mb)
        if mb is not None:
            left[index] = min(total, float(mb))
            silent.discard(index)
    if silent:
        for info in node.models.values():
            if info.status in RESIDENT and (used := size(info, node, snapshot, ledger)):
                on = places(info.devices, left)
                for index in silent.intersection(on):
                    left[index] = max(0.0, left[index] - used / len(on))
    return left


def _believed(mb: float | None) -> float | None:
    """A footprint, or None when there is none, or none that can be: it may be from a file."""
    return float(mb) if mb is not None and 0 <= mb <= _MOST else None
