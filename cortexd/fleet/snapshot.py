"""The picture of the fleet that every decision is taken on: frozen, with one writer.

A snapshot is replaced, never changed. The index `replicas` is renewed only when a fact that
routing reads has changed; gauges (memory, load, progress) stay with the node, so that the
frequent case, a poll that only moved gauges, costs one small dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from cortexd.fleet.catalogue import Catalogue
from cortexd.wire.neuron import Discovery, Health, Model


class Replica(msgspec.Struct, frozen=True):
    """A model on a node, as far as routing cares.

    unservable: the node's own reason why a resident model can't answer; None: it can.
    epoch: how often the node was seen to restart; what was learnt in another epoch is stale.
    """

    node: str
    model: str
    status: str
    unservable: str | None = None
    epoch: int = 0


class Told(msgspec.Struct, frozen=True):
    """What we know about a model on a node from our own act, newer than any poll before `at`."""

    status: str
    at: float


class Node(msgspec.Struct, frozen=True):
    """One GPU host.

    endpoint: base URL of its neuron, without a trailing slash.
    polled: asked at least once, answered or not.
    trouble: why it is not healthy, or the last poll's failure.
    last_contact: monotonic seconds of the last good answer.
    """

    name: str
    endpoint: str
    healthy: bool = False
    polled: bool = False
    draining: bool = False
    failures: int = 0
    trouble: str | None = None
    last_contact: float | None = None
    hardware: Discovery | None = None
    health: Health | None = None
    health_at: float = 0.0
    epoch: int = 0
    models: Mapping[str, Model] = {}
    told: Mapping[str, Told] = {}

    @property
    def is_available(self) -> bool:
        """Whether new work may go there."""
        return self.healthy and not self.draining


class Snapshot(msgspec.Struct, frozen=True):
    """The fleet at one moment.

    replicas: model → where it is known, on healthy nodes or not.
    settled: every configured node has been polled once, or has had its time to answer.
    """

    nodes: Mapping[str, Node] = {}
    replicas: Mapping[str, tuple[Replica, ...]] = {}
    catalogue: Catalogue = Catalogue()
    healthy: int = 0
    settled: bool = False


class Failure(msgspec.Struct, frozen=True):
    """A load that failed on a node, and until when (monotonic seconds) it is not tried again."""

    message: str
    until: float
    count: int = 1


@dataclass(slots=True)
class Ledger:
    """What only we know: our requests in flight, our loads under way, and those that failed.

    Its owners write it (registry: `in_flight`, `last_access`, `gates`; load table: the others); a
    decision only reads it. Keys are (node, model), except where it says so.

    loading: model → node.
    turns: where requests wait for their turn, and what to call when one that runs has ended.
    gates: model → the nodes where it is being unloaded: nothing new is sent there meanwhile.
    """

    in_flight: dict[tuple[str, str], int] = field(default_factory=dict)
    last_access: dict[tuple[str, str], float] = field(default_factory=dict)
    loading: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    turns: dict[tuple[str, str], Callable[[], None]] = field(default_factory=dict)
    gates: dict[str, set[str]] = field(default_factory=dict)

    def failed(self, model: str) -> dict[str, Failure]:
        """Node → how the last load of that model failed there."""
        return {node: failure for (node, of), failure in self.failures.items() if of == model}


def with_node(snapshot: Snapshot, node: Node) -> Snapshot:
    """The snapshot with `node` put in, and the index renewed where its replicas changed."""
    before = snapshot.nodes.get(node.name)
    nodes = dict(snapshot.nodes)
    nodes[node.name] = node
    index = snapshot.replicas
    if before is None or before.models is not node.models or before.epoch != node.epoch:
        index = _reindexed(index, before, node)
    return msgspec.structs.replace(
        snapshot,
        nodes=MappingProxyType(nodes),
        replicas=index,
        healthy=snapshot.healthy + node.healthy - (before is not None and before.healthy),
    )


def _reindexed(
    index: Mapping[str, tuple[Replica, ...]], before: Node | None, node: Node
) -> Mapping[str, tuple[Replica, ...]]:
    changed: dict[str, Replica | None] = {}
    old = before.models if before else {}
    for model, info in node.models.items():
        replica = _replica(node, model, info)
        if model not in old or before is None or _replica(before, model, old[model]) != replica:
            changed[model] = replica
    changed.update((model, None) for model in old if model not in node.models)
    if not changed:
        return index
    renewed = dict(index)
    for model, now in changed.items():
        others = [known for known in index.get(model, ()) if known.node != node.name]
        if now is not None:
            others.append(now)
        if others:
            renewed[model] = tuple(sorted(others, key=lambda known: known.node))
        else:
            del renewed[model]
    return MappingProxyType(renewed)


def _replica(node: Node, model: str, info: Model) -> Replica:
    unservable = None
    if info.servable is not None and info.servable.ok is False:
        said = [words for words in (info.servable.reason, info.servable.detail) if words]
        unservable = ": ".join(said) or "the node gives no reason"
    return Replica(node.name, model, info.status, unservable, node.epoch)
