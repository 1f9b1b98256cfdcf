"""GET /api/fleet: the snapshot and the ledger as people want to see them. From memory alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from cortexd.config.catalogue import DEFAULT_PRIORITY
from cortexd.control.entry import Entry
from cortexd.fleet import snapshot as picture
from cortexd.fleet.snapshot import Ledger, Snapshot
from cortexd.gateway.health import NOTHING
from cortexd.wire.fleet import Device, Hardware, Load, Model, Node, Totals
from cortexd.wire.neuron import (
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    DeviceHealth,
    Discovery,
    ModelLoad,
    Progress,
)

_COMING: Final = frozenset({LOADING, RECOVERING, RELOADING})  # a load may report progress

_encode: Final = msgspec.json.Encoder().encode


def pieces(
    snapshot: Snapshot,
    ledger: Ledger,
    entries: Iterable[Entry],
    waiting: int,
    now: float,
    unanswered: Mapping[tuple[str, str], float] = NOTHING,
) -> Iterator[bytes]:
    """Yield a `Fleet` as JSON, node by node.

    The fleet at `now`, monotonic. entries: loads under way. waiting: requests per model.
    unanswered: (node, model) → when its oldest request without a byte was sent, monotonic.
    """
    at_work: dict[str, int] = {}
    for (name, _), count in ledger.in_flight.items():
        at_work[name] = at_work.get(name, 0) + count
    loads = [_load(entry, now) for entry in entries]
    nodes: list[Node] = []
    yield b'{"nodes":['
    for node in sorted(snapshot.nodes.values(), key=lambda node: node.name):
        made = _node(node, snapshot, ledger, at_work.get(node.name, 0), now, unanswered)
        yield (b"," if nodes else b"") + _encode(made)
        nodes.append(made)
    # The rest of the answer, without its opening brace.
    rest = {"loads": loads, "totals": _totals(nodes, waiting), "settled": snapshot.settled}
    yield b"]," + _encode(rest)[1:]


def _node(
    node: picture.Node,
    snapshot: Snapshot,
    ledger: Ledger,
    in_flight: int,
    now: float,
    unanswered: Mapping[tuple[str, str], float],
) -> Node:
    status: Literal["up", "down", "draining"] = "up"
    if not node.healthy:
        status = "down"
    elif node.draining:
        status = "draining"
    catalogue = snapshot.catalogue
    busy = {catalogue.bare(load.id): load for load in (node.health and node.health.models) or ()}
    return Node(
        name=node.name,
        host=urlsplit(node.endpoint).netloc.rpartition("@")[2],
        status=status,
        draining=node.draining,
        trouble=node.trouble or (None if node.polled else "not polled yet"),
        contact_seconds=None if node.last_contact is None else _since(node.last_contact, now),
        weight=node.weight,
        reserve_mb=node.reserve_mb,
        in_flight=in_flight,
        hardware=None if node.hardware is None else _hardware(node.hardware),
        devices=_devices(node),
        models=[
            _model(
                node, model, snapshot, ledger, busy.get(model, ModelLoad(model)), now, unanswered
            )
            for model in sorted(node.models)
        ],
    )


def _hardware(said: Discovery) -> Hardware:
    return Hardware(
        hostname=said.hostname,
        os=said.os,
        driver_version=said.driver_version,
        cuda_version=said.cuda_version,
        harnesses=said.harnesses,
        cuda_unavailable_reason=said.cuda_unavailable_reason,
    )


def _devices(node: picture.Node) -> list[Device]:
    known = {device.index: device for device in (node.hardware and node.hardware.devices) or ()}
    gauges = {device.index: device for device in (node.health and node.health.devices) or ()}
    devices = []
    for index in sorted({*known, *gauges}):
        info, gauge = known.get(index), gauges.get(index, DeviceHealth(index))
        devices.append(
            Device(
                index,
                name=info.name if info else None,
                kind=info.kind if info else None,
                total_mb=info.vram_total_mb if info else None,
                used_mb=gauge.vram_used_mb,
                free_mb=gauge.vram_free_mb,
                utilization_pct=gauge.utilization_pct,
                temp_c=gauge.temp_c,
            )
        )
    return devices


def _model(
    node: picture.Node,
    model: str,
    snapshot: Snapshot,
    ledger: Ledger,
    reported: ModelLoad,
    now: float,
    unanswered: Mapping[tuple[str, str], float],
) -> Model:
    info, key = node.models[model], (node.name, model)
    progress = (info.progress if info.status in _COMING else None) or Progress()
    profile = snapshot.catalogue.profiles.get(model)
    in_flight, last = ledger.in_flight.get(key, 0), ledger.last_access.get(key)
    idle = None if last is None else _since(last, now)
    sent = unanswered.get(key) if in_flight else None
    return Model(
        id=model,
        status=info.status,
        devices=info.devices,
        vram_used_mb=info.vram_used_mb,
        in_flight=in_flight,
        running=reported.in_flight,
        queued=reported.queue_depth,
        unservable=picture.unservable(info),
        error=info.error,
        stage=progress.stage,
        fraction=progress.fraction,
        priority=profile.priority if profile else DEFAULT_PRIORITY,
        idle_seconds=0.0 if in_flight else idle,
        gated=ledger.is_gated(node.name, model),
        oldest_unanswered_seconds=None if sent is None else _since(sent, now),
    )


def _load(entry: Entry, now: float) -> Load:
    return Load(
        model=entry.model,
        node=entry.node,
        state=entry.state.value,
        stage=entry.stage,
        fraction=entry.fraction,
        waiting=len(entry.line),
        seconds=_since(entry.began, now),
        ours=entry.is_ours,
    )


def _totals(nodes: list[Node], waiting: int) -> Totals:
    here = [node for node in nodes if node.status != "down"]
    devices = [device for node in here for device in node.devices]
    return Totals(
        nodes=len(nodes),
        up=sum(node.status == "up" for node in nodes),
        draining=sum(node.draining for node in nodes),
        devices=len(devices),
        total_mb=sum(device.total_mb or 0 for device in devices),
        used_mb=sum(device.used_mb or 0 for device in devices),
        loaded=sum(model.status in {LOADED, RELOADING} for node in here for model in node.models),
        in_flight=sum(node.in_flight for node in nodes),
        waiting=waiting,
    )


def _since(moment: float, now: float) -> float:
    return round(max(0.0, now - moment), 1)
