"""Short words for fleets: nodes, profiles and snapshots as tests want them."""

from __future__ import annotations

from typing import Any

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.sanity import sane
from cortexd.fleet.snapshot import DEFAULT_POLICY, Node, Policy, Snapshot, with_node
from cortexd.wire.neuron import (
    Activation,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    Health,
    Model,
    Servable,
)

BROKEN = Servable(ok=False, reason="wedged")


def hardware(*vram_mb: int, **fields: Any) -> Discovery:
    return Discovery([DeviceInfo(i, vram) for i, vram in enumerate(vram_mb)], **fields)


def held(mb: float | None, *devices: int, status: str = "loaded") -> Model:
    """A resident model; its name is given by `node`."""
    return Model("", status, devices=list(devices) or None, vram_used_mb=mb)


def node(
    name: str,
    models: dict[str, str | Model] | None = None,
    *,
    up: bool = True,
    gpus: tuple[int, ...] | None = (24000,),
    free: tuple[float, ...] = (),
    catalogue: Catalogue | None = None,
    activation: Activation | None = None,
    discovery: Discovery | None = None,
    gauges: list[DeviceHealth] | None = None,
    **fields: Any,
) -> Node:
    """A polled node with those models (id → status); `gpus` None: never described. `free`: MiB, of
    the first devices; the others report nothing. As a poll does, it drops what can't be true."""
    listed = [
        Model(key, it) if isinstance(it, str) else msgspec.structs.replace(it, id=it.id or key)
        for key, it in (models or {}).items()
    ]
    seen = Observation(
        1.0,
        1.1,
        models=listed,
        health=Health(
            uptime_secs=100,
            activation=activation,
            devices=gauges or [DeviceHealth(i, vram_free_mb=mb) for i, mb in enumerate(free)],
        ),
        discovery=discovery or (None if gpus is None else hardware(*gpus)),
    )
    seen, _ = sane(seen, None)
    polled = observed(
        Node(name, f"http://{name}:13131"), seen, catalogue or Catalogue(), unhealthy_after=3
    )
    if not up:
        fields = {"healthy": False, "trouble": "connection refused"} | fields
    return msgspec.structs.replace(polled, **fields)


def fleet(
    *nodes: Node,
    models: tuple[Profile, ...] = (),
    aliases: dict[str, str] | None = None,
    settled: bool = True,
    policy: Policy = DEFAULT_POLICY,
) -> Snapshot:
    snapshot = Snapshot(
        catalogue=Catalogue.of(models, aliases or {}), settled=settled, policy=policy
    )
    for one in nodes:
        snapshot = with_node(snapshot, one)
    return snapshot


def full(name: str, *models: str, mb: int = 20000, **fields: object) -> Node:
    """A node of one device that those models fill, evenly."""
    listed: dict[str, str | Model] = {model: held(mb / len(models), 0) for model in models}
    return node(name, listed, free=(24000 - mb,), **fields)  # type: ignore[arg-type]
