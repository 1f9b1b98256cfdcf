"""Where a catalogue model could go, and what to ask the node for.

Reads what a node has (its devices), not yet what is free on them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.snapshot import Failure, Ledger, Node, Snapshot
from cortexd.wire.neuron import DeviceInfo, Discovery, LoadRequest


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
    if profile.pinned_on and node.name not in profile.pinned_on:
        return "not in pinned_on"
    hardware = node.hardware
    if hardware is None:
        return None
    if hardware.cuda_unavailable_reason is not None:
        return f"can load nothing: {hardware.cuda_unavailable_reason}"
    if hardware.harnesses and profile.harness not in hardware.harnesses:
        return f"has no harness {profile.harness!r}, only {', '.join(hardware.harnesses)}"
    if len(fitting_devices(profile, hardware)) < profile.min_devices:
        return (
            f"{_count(profile.min_devices)} of {device_floor(profile):g} MiB or more needed, "
            f"it has {_described(hardware)}"
        )
    return None


def device_floor(profile: Profile) -> float:
    """MiB that each of the model's devices must have in total."""
    share = profile.vram_mb / profile.min_devices if profile.vram_mb else 0
    return max(profile.min_device_vram_mb, share)


def fitting_devices(profile: Profile, hardware: Discovery) -> list[DeviceInfo]:
    """The devices that are large enough for the model's share, by index."""
    floor = device_floor(profile)
    return sorted(
        (device for device in hardware.devices if device.vram_total_mb >= floor),
        key=lambda device: device.index,
    )


def load_request(profile: Profile, hardware: Discovery | None) -> LoadRequest:
    """The profile as a node reads it. Total: without a usable topology the devices are the first
    `min_devices`, and the node has the last word."""
    devices = [device.index for device in fitting_devices(profile, hardware)] if hardware else []
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
) -> Placement | NoPlacement:
    """Choose the node for a load: in the order of `pinned_on`, then by name. `now` is monotonic.

    A node where the load failed lately is passed over until its back-off has ended; nodes in
    `avoid` are never looked at.
    """
    nothing = NoPlacement({}, {}, {})
    for node in _candidates(profile, snapshot):
        if node.name in avoid:
            continue
        if (reason := infeasibility(profile, node)) is not None:
            nothing.infeasible[node.name] = reason
        elif (reason := _absence(node)) is not None:
            nothing.asleep[node.name] = reason
        elif (failed := ledger.failures.get((node.name, profile.id))) and failed.until > now:
            nothing.failures[node.name] = failed
        else:
            return Placement(node.name, load_request(profile, node.hardware))
    return nothing


def _candidates(profile: Profile, snapshot: Snapshot) -> list[Node]:
    rank = {name: place for place, name in enumerate(profile.pinned_on)}
    return sorted(
        snapshot.nodes.values(), key=lambda node: (rank.get(node.name, len(rank)), node.name)
    )


def _absence(node: Node) -> str | None:
    if not node.healthy:
        return f"unhealthy ({node.trouble or 'not polled yet'})"
    if node.draining:
        return "draining"
    return None if node.hardware is not None else "not described yet"


def _count(devices: int) -> str:
    return f"{devices} device{'s' if devices > 1 else ''}"


def _described(hardware: Discovery) -> str:
    sizes = ", ".join(f"{device.vram_total_mb:g}" for device in hardware.devices)
    return f"{_count(len(hardware.devices))} of {sizes} MiB" if sizes else "none"
