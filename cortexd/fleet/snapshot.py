"""The picture of the fleet that every decision is taken on: frozen, with one writer.

A snapshot is replaced, never changed. The index `replicas` is renewed only when a fact that
routing reads has changed; gauges (memory, load, progress) stay with the node, so that the
frequent case, a poll that only moved gauges, costs one small dict.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import msgspec

from cortexd.fleet.catalogue import Catalogue
from cortexd.wire.neuron import Discovery, Health, Model


class Replica(msgspec.Struct, frozen=True):
    """A model on a node, as far as routing cares.

    unservable: the node's own reason why a resident model can't answer; None: it can.
    epoch: how often the node was seen to restart; what was learnt in another epoch is stale.
    context: tokens that its context holds, as its node says; None: it does not say.
    """

    node: str
    model: str
    status: str
    unservable: str | None = None
    epoch: int = 0
    context: int | None = None


class Told(msgspec.Struct, frozen=True):
    """What we know about a model on a node from our own act, newer than any poll before `at`."""

    status: str
    at: float


class Nonsense(msgspec.Struct, frozen=True):
    """Something that a node reported and that can't be true; what is kept by the complaint.

    where: the models or devices concerned, in words; may be empty. at: when it last did, monotonic.
    """

    where: str
    at: float


class Policy(msgspec.Struct, frozen=True):
    """What an operator may have decided about the whole fleet; see the configuration's `[routing]`
    and `[eviction]`.

    stale_after: seconds after which a node's report of its load is not believed any more.
    min_residency: seconds; None: by the model's last load time.
    """

    affinity: bool = True
    stale_after: float = 6.0
    evicts: bool = True
    patience: float = 30.0
    gate_timeout: float = 120.0
    min_residency: float | None = None
    idle_ttl: float | None = None


DEFAULT_POLICY: Final = Policy()

# Id of a model that a node has files of → their quants in upper case ("": none named); None: any.
Files = Mapping[str, frozenset[str] | None]


class Node(msgspec.Struct, frozen=True):
    """One GPU host.

    endpoint: base URL of its neuron, without a trailing slash.
    polled: asked at least once, answered or not.
    leaving: the configuration has it no more; it is drained, and goes when nothing runs there.
    trouble: why it is not healthy, or the last poll's failure.
    weight, reserve_mb: as configured.
    busy: model → requests that run or queue there, by its last report (at `health_at`).
    last_contact: monotonic seconds of the last good answer.
    unhealthy_since: monotonic seconds at which it became unhealthy; None: it is healthy, or never
        was.
    nonsense: what it reports and is not believed, by the complaint in words.
    listed_before: models that it listed before the gateway started, by the state file.
    files: what it could load, by its last word; None: it has not said.
    """

    name: str
    endpoint: str
    healthy: bool = False
    polled: bool = False
    draining: bool = False
    leaving: bool = False
    weight: float = 1.0
    reserve_mb: float = 0
    failures: int = 0
    trouble: str | None = None
    last_contact: float | None = None
    unhealthy_since: float | None = None
    hardware: Discovery | None = None
    health: Health | None = None
    health_at: float = 0.0
    epoch: int = 0
    models: Mapping[str, Model] = {}
    told: Mapping[str, Told] = {}
    busy: Mapping[str, int] = {}
    nonsense: Mapping[str, Nonsense] = {}
    listed_before: Collection[str] = ()
    files: Files | None = None

    @property
    def is_available(self) -> bool:
        """Whether new work may go there."""
        return self.healthy and not self.draining

    @property
    def is_unheard(self) -> bool:
        """Return whether it has not answered since the gateway started (or the node was added)."""
        return not (self.healthy or self.leaving) and self.last_contact is None


class Snapshot(msgspec.Struct, frozen=True):
    """The fleet at one moment.

    replicas: model → where it is known, on healthy nodes or not.
    settled: every configured node has been polled once, or has had its time to answer.
    """

    nodes: Mapping[str, Node] = {}
    replicas: Mapping[str, tuple[Replica, ...]] = {}
    catalogue: Catalogue = Catalogue()
    policy: Policy = DEFAULT_POLICY
    healthy: int = 0
    settled: bool = False


class Failure(msgspec.Struct, frozen=True):
    """A load that failed on a node, and until when (monotonic seconds) it is not tried again."""

    message: str
    until: float
    count: int = 1


class Promise(msgspec.Struct, frozen=True):
    """Memory that a load of ours is going to take, or takes right now.

    devices: index → MiB. before: index → MiB that were free for it when the load began; None: it
    has not begun, others still make room.
    ended: when the load was over, monotonic; it holds until the node reports anew.
    """

    devices: Mapping[int, float]
    before: Mapping[int, float] | None = None
    ended: float | None = None


class FreedMemory(msgspec.Struct, frozen=True):
    """Memory of models that were unloaded from a node and that the node has not reported yet.

    devices: index → MiB that they held. before: index → MiB that were reported free before the
        first unload. left: index → MiB of it that are not reported yet.
    unloaded: when the last unload ended; risen: when a report last showed more of it; monotonic.
    epoch: of the node.
    """

    devices: Mapping[int, float]
    before: Mapping[int, float]
    left: Mapping[int, float]
    unloaded: float
    risen: float | None = None
    epoch: int = 0


class Fault(msgspec.Struct, frozen=True):
    """Requests that a replica failed lately.

    penalty: at `at`, monotonic; it halves every few seconds. suspect_until: chosen only when no
    other is left.
    """

    penalty: float
    at: float
    suspect_until: float = 0.0


ANYWHERE: Final = ""  # in place of a node: the largest footprint that was seen on any


class FootprintKey(msgspec.Struct, frozen=True):
    """What a measured footprint is of: the same model may need another amount of memory in another
    quant, spread over another number of devices, or on another node."""

    model: str
    harness: str
    quant: str | None
    devices: int
    node: str


@dataclass(slots=True)
class Ledger:
    """What only we know: our requests in flight, our loads under way, and those that failed.

    Its owners write it (registry: `in_flight`, `last_access`, `gates`, `counted`,
    `faults`, `served`, `answered`; load table: the others); a
    decision only reads it. Keys are (node, model), except where it says so.

    loading: model → node.
    turns: where requests wait for their turn, and what to call when one that runs has ended.
    counted: how many of our requests ran there when its node last reported how busy it is.
    promises: memory for loads under way. footprints: MiB that models were seen to take.
    spared: who would not leave, and until when nobody asks again. stubborn: who went on working
    though it got nothing new, and until when that is not tried again.
    served: when it first answered since it is resident; answered: when it last finished an answer,
    to within a second; load_seconds: of its last load.
    gates: model → the nodes where it is being unloaded: nothing new is sent there meanwhile.
    unloadable: why a node can't load the model, in its words, until its files or it is another one.
    freed: node → memory that is known to be coming there.
    """

    in_flight: dict[tuple[str, str], int] = field(default_factory=dict)
    last_access: dict[tuple[str, str], float] = field(default_factory=dict)
    loading: dict[str, str] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    turns: dict[tuple[str, str], Callable[[], None]] = field(default_factory=dict)
    gates: dict[str, set[str]] = field(default_factory=dict)
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    promises: dict[tuple[str, str], Promise] = field(default_factory=dict)
    footprints: dict[FootprintKey, float] = field(default_factory=dict)
    spared: dict[tuple[str, str], float] = field(default_factory=dict)
    stubborn: dict[tuple[str, str], float] = field(default_factory=dict)
    served: dict[tuple[str, str], float] = field(default_factory=dict)
    answered: dict[tuple[str, str], float] = field(default_factory=dict)
    load_seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    unloadable: dict[tuple[str, str], str] = field(default_factory=dict)
    freed: dict[str, FreedMemory] = field(default_factory=dict)

    def is_gated(self, node: str, model: str) -> bool:
        """Whether nothing new is sent there, since it is on its way out."""
        return bool(self.gates) and node in self.gates.get(model, ())

    def failed(self, model: str) -> dict[str, Failure]:
        """Node → how the last load of that model failed there."""
        return {node: failure for (node, of), failure in self.failures.items() if of == model}

    def count_unloadable(self, model: str) -> int:
        """Return the number of nodes that say that they can't load the model."""
        return sum(of == model for _, of in self.unloadable)


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


def without_node(snapshot: Snapshot, name: str) -> Snapshot:
    """The snapshot without that node and its replicas."""
    node = snapshot.nodes[name]
    return msgspec.structs.replace(
        snapshot,
        nodes=MappingProxyType({key: it for key, it in snapshot.nodes.items() if key != name}),
        replicas=_reindexed(
            snapshot.replicas, node, msgspec.structs.replace(node, models=MappingProxyType({}))
        ),
        healthy=snapshot.healthy - node.healthy,
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


def unservable(info: Model) -> str | None:
    """Why a model that is resident can't answer, in the node's words; None: it can."""
    if info.servable is None or info.servable.ok is not False:
        return None
    said = [words for words in (info.servable.reason, info.servable.detail) if words]
    return ": ".join(said) or "the node gives no reason"


def _replica(node: Node, model: str, info: Model) -> Replica:
    context = info.limit.context if info.limit is not None else None
    if context is not None and context <= 0:
        context = None
    return Replica(node.name, model, info.status, unservable(info), node.epoch, context)
