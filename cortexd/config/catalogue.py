"""The catalogue: which models the fleet may be asked to load, and what each one needs."""

from __future__ import annotations

from typing import Final

import msgspec

from cortexd.config.units import Amount, Count, Duration
from cortexd.wire.neuron import Cost, Limit

DEFAULT_PRIORITY: Final = 100  # also that of models outside the catalogue
PINNED_PRIORITY: Final = 1000


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[models]]` table. Only `id` is required.

    id: what requests call it, and what nodes know it as.
    harness: what runs it on the node.
    quant: which of its quantisations.
    vram_mb: MiB that the whole model needs; split evenly over `min_devices`.
    min_devices: how many devices it is spread over (tensor parallelism when over 1).
    min_device_vram_mb: MiB that each of them must have in total.
    pinned_on: the only nodes it may be loaded on, the preferred one first; empty: any.
    residency_priority: it may displace models of its own class and below (default: 100; 1000 when
        it is pinned).
    replicas: how many copies to keep on different nodes, where there is room.
    preload: keep one, without being asked.
    idle_ttl: unload it when nobody has asked for it in that time (default: [eviction] idle_ttl).
    source: where the node gets it from; sent to the node as `source:id`.
    limit: its tokens, shown in /v1/models: `{ context = 16384, input = 14336, output = 2048 }`.
    cost: its price per million tokens, shown in /v1/models: `{ input = 0.1, output = 0.4 }`.
    capabilities: shown in /v1/models.
    """

    id: str
    harness: str = "llamacpp"
    quant: str | None = None
    vram_mb: Amount | None = None
    min_devices: Count = 1
    min_device_vram_mb: Amount = 0
    pinned_on: tuple[str, ...] = ()
    residency_priority: int | None = None
    replicas: Count | None = None
    preload: bool = False
    idle_ttl: Duration | None = None
    source: str | None = None
    limit: Limit | None = None
    cost: Cost | None = None
    capabilities: tuple[str, ...] = ()

    @property
    def priority(self) -> int:
        """Its residency class."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_PRIORITY if self.pinned_on else DEFAULT_PRIORITY

    @property
    def load_name(self) -> str:
        """The id to send to a node in a load request: `source:id`, or the id alone."""
        return f"{self.source}:{self.id}" if self.source else self.id

    @property
    def copies(self) -> int:
        """How many to keep resident without being asked."""
        return max(self.replicas or 0, int(self.preload))
