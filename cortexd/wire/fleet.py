"""GET /api/fleet: the picture that the gateway has of its nodes, for people and their programs.

Sizes named `*_mb` are MiB, `*_seconds` are seconds; `null` is unknown. Fields are only ever added.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cortexd.wire.neuron import Number


class Device(msgspec.Struct, frozen=True):
    """One device of a node."""

    index: int
    name: str | None = None
    kind: str | None = None
    total_mb: Number | None = None
    used_mb: Number | None = None
    free_mb: Number | None = None
    utilization_pct: Number | None = None
    temp_c: Number | None = None


class Model(msgspec.Struct, frozen=True):
    """A model that a node knows.

    in_flight: requests of this gateway's there. running, queued: by the node's last report.
    unservable: why it can't answer, though it is resident. stage, fraction: of a load, 0 to 1.
    priority: its residency class. idle_seconds: since this gateway last used it; null: it never
    has. gated: it is being unloaded, and gets nothing new. oldest_unanswered_seconds: age of this
    gateway's oldest request there that no byte of an answer has come for; null: there is none.
    """

    id: str
    status: str
    devices: list[int] | None = None
    vram_used_mb: Number | None = None
    in_flight: int = 0
    running: int | None = None
    queued: int | None = None
    unservable: str | None = None
    error: str | None = None
    stage: str | None = None
    fraction: Number | None = None
    priority: int = 0
    idle_seconds: float | None = None
    gated: bool = False
    oldest_unanswered_seconds: float | None = None


class Hardware(msgspec.Struct, frozen=True):
    """What a node says of itself. cuda_unavailable_reason: why nothing can be loaded there."""

    hostname: str | None = None
    os: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    harnesses: list[str] | None = None
    cuda_unavailable_reason: str | None = None


class Node(msgspec.Struct, frozen=True):
    """A node. `draining`: it gets no new work; that is so of one that is down, too.

    host: where its neuron is. trouble: why it is down, or what went wrong with its last poll.
    contact_seconds: since its last good answer. in_flight: requests of this gateway's there.
    """

    name: str
    host: str
    status: Literal["up", "down", "draining"]
    draining: bool = False
    trouble: str | None = None
    contact_seconds: float | None = None
    weight: float = 1.0
    reserve_mb: Number = 0
    in_flight: int = 0
    hardware: Hardware | None = None
    devices: list[Device] = []
    models: list[Model] = []


class Load(msgspec.Struct, frozen=True):
    """A load that is under way, or what else requests wait for.

    state: as in the load's life: queued, placing, making room, loading, or timed out (its node is
    still at it). waiting: requests. ours: this gateway asked for it.
    """

    model: str
    node: str | None
    state: str
    stage: str | None = None
    fraction: Number | None = None
    waiting: int = 0
    seconds: float = 0.0
    ours: bool = True


class Totals(msgspec.Struct, frozen=True):
    """The whole fleet. Memory: of the nodes that are not down. loaded: resident copies there.
    waiting: requests that wait for a model."""

    nodes: int = 0
    up: int = 0
    draining: int = 0
    devices: int = 0
    total_mb: Number = 0
    used_mb: Number = 0
    loaded: int = 0
    in_flight: int = 0
    waiting: int = 0


class Fleet(msgspec.Struct, frozen=True):
    """The answer. settled: every node has been asked once since the gateway started."""

    nodes: list[Node]
    loads: list[Load]
    totals: Totals
    settled: bool = True
