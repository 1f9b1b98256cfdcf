"""Short words for fleets: nodes, profiles and snapshots as tests want them."""

from __future__ import annotations

from typing import Any

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.snapshot import Node, Snapshot, with_node
from cortexd.wire.neuron import Activation, DeviceInfo, Discovery, Health, Model, Servable

BROKEN = Servable(ok=False, reason="wedged")


def hardware(*vram_mb: int, **fields: Any) -> Discovery:
    return Discovery([DeviceInfo(i, vram) for i, vram in enumerate(vram_mb)], **fields)


def node(
    name: str,
    models: dict[str, str | Model] | None = None,
    *,
    up: bool = True,
    gpus: tuple[int, ...] | None = (24000,),
    catalogue: Catalogue | None = None,
    activation: Activation | None = None,
    discovery: Discovery | None = None,
    **fields: Any,
) -> Node:
    """A polled node with those models (id → status); `gpus` None: never described."""
    listed = [Model(key, it) if isinstance(it, str) else it for key, it in (models or {}).items()]
    seen = Observation(
        1.0,
        1.1,
        models=listed,
        health=Health(uptime_secs=100, activation=activation),
        discovery=discovery or (None if gpus is None else hardware(*gpus)),
    )
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
) -> Snapshot:
    snapshot = Snapshot(catalogue=Catalogue.of(models, aliases or {}), settled=settled)
    for one in nodes:
        snapshot = with_node(snapshot, one)
    return snapshot
