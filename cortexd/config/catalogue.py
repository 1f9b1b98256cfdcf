"""The catalogue: which models the fleet may be asked to load, and what each one needs."""

from __future__ import annotations

from typing import Final

import msgspec

from cortexd.config.units import Duration
from cortexd.wire.neuron import Cost, Limit

DEFAULT_PRIORITY: Final = 100  # also that of models outside the catalogue
PINNED_PRIORITY: Final = 1000


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[models]]` table. Only `id` is required.

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
    """

    id: str
    harness: str = "llamacpp"
    quant: str | None = None
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int = 0
    pinned_on: tuple[str, ...] = ()
    residency_priority: int | None = None
    replicas: int | None = None
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
    def copies(self) -> int:
        """How many to keep resident without being asked."""
        return max(self.replicas or 0, int(self.preload))

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id must not be empty")
        if self.min_devices < 1:
            raise ValueError("min_devices must be at least 1")
        if self.min_device_vram_mb < 0 or (self.vram_mb is not None and self.vram_mb < 0):
            raise ValueError("a size in MiB must not be negative")
        if self.replicas is not None and self.replicas < 1:
            raise ValueError("replicas must be at least 1")
        if self.source is not None and (not self.source or ":" in self.source):
            raise ValueError('source must be a word without a colon, like "hf"')
