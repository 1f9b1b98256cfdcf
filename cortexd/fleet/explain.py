"""Why a model would be served where it would: the decision of this moment, and what every node has
to say for itself. For people; nothing is decided here."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from cortexd.fleet.aliases import name_alias
from cortexd.fleet.assessment import Assessment, assess
from cortexd.fleet.choice import is_suspect, score
from cortexd.fleet.memory import free
from cortexd.fleet.routing import ABLE, Decision, Lazy, Load, Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import Ledger, Node, Replica, Snapshot
from cortexd.wire.neuron import FAILED, LOADED, LOADING, RECOVERING, RELOADING, UNLOADED

_HERE = {
    LOADED: "is loaded there",
    RELOADING: "is coming back there",
    LOADING: "is being loaded there",
    RECOVERING: "is being rebuilt there",
    UNLOADED: "is known there, and reloaded by the node itself",
    FAILED: "has failed there",
}
_ABSENT = frozenset({UNLOADED, FAILED})


class Verdict(msgspec.Struct, frozen=True):
    """What one node could do for the model. `words`: all of it, for a person.

    status: of the node. model_status: of the model there, if the node knows it.
    score: how busy that copy is, where it could serve; the lowest serves, of about equal ones that
    which has the conversation. suspect: it failed a moment ago, and is asked last.
    infeasible: why the node can't load the model, however often it is asked.
    failure: of the last load there; retry_seconds: until it may be tried again.
    free_mb: device → MiB for a new load. needs_mb: what the model takes in all; null: unknown.
    devices: those that it would be loaded on. fits: there is room there now.
    victims: idle models that would be unloaded. blockers: models at work, which it would wait for.
    crowded: why there is no room and none is made.
    """

    node: str
    status: Literal["up", "down", "draining"]
    words: str
    model_status: str | None = None
    unservable: str | None = None
    in_flight: int = 0
    score: float | None = None
    suspect: bool = False
    infeasible: str | None = None
    failure: str | None = None
    retry_seconds: int | None = None
    free_mb: dict[int, float] = {}
    needs_mb: float | None = None
    devices: list[int] = []
    fits: bool | None = None
    victims: list[str] = []
    blockers: list[str] = []
    crowded: str | None = None


class Explanation(msgspec.Struct, frozen=True):
    """What would become of a request for the model now, and why.

    model: its id; alias: the name that was asked about, when that is another one.
    node: where it would go, or what it would wait for is. code: of the refusal.
    """

    model: str
    decision: Literal["serve", "lazy", "load", "wait", "refuse"]
    words: str
    alias: str | None = None
    node: str | None = None
    code: str | None = None
    nodes: list[Verdict] = []


def explain(name: str, snapshot: Snapshot, ledger: Ledger, now: float) -> Explanation:
    """For a model's id or alias. `now` is monotonic, as in the ledger."""
    model = snapshot.catalogue.resolve(name)
    here = {replica.node: replica for replica in snapshot.replicas.get(model, ())}
    decision = decide(Query(model), snapshot, ledger, now)
    if isinstance(decision, Refuse):
        decision = Refuse(name_alias(decision.refusal, name, model))
    kind, node, code, words = _told(decision, ledger)
    return Explanation(
        model=model,
        decision=kind,
        words=words,
        alias=name if name != model else None,
        node=node,
        code=code,
        nodes=[
            _verdict(model, node, here.get(node.name), snapshot, ledger, now)
            for node in sorted(snapshot.nodes.values(), key=lambda node: node.name)
        ],
    )


def _told(
    decision: Decision, ledger: Ledger
) -> tuple[Literal["serve", "lazy", "load", "wait", "refuse"], str | None, str | None, str]:
    match decision:
        case Serve(replica):
            how = "is loaded" if replica.status == LOADED else "is coming back"
            return "serve", replica.node, None, f"It would be served by {replica.node}: it {how}."
        case Lazy(replica):
            words = f"It would be sent to {replica.node}, which knows it and reloads it by itself."
            return "lazy", replica.node, None, words
        case Load(_, placement):
            on = _devices(placement.spec.devices or [])
            words = f"It would be loaded on {placement.node}, {on}"
            if placement.victims:
                words += f", after {_names(placement.victims)} {_is(placement.victims)} unloaded"
            if placement.awaits_memory:
                words += ", as soon as the node reports the memory of unloaded models"
            if placement.blockers:
                words += f"; that waits for {_names(placement.blockers)} to be no longer needed"
            return "load", placement.node, None, words + "."
        case Wait(_, "starting"):
            return "wait", None, None, "It would wait: not every node has been asked yet."
        case Wait(asked, "loading", node) if _is_without_room(asked, ledger):
            return "wait", node, None, f"It would wait: room is being made for it on {node}."
        case Wait(_, reason, node):
            where = f" on {node}" if node else ""
            return "wait", node, None, f"It would wait: it is {reason}{where}."
        case Refuse(refusal):
            return "refuse", None, refusal.kind.code, f"It would be refused: {refusal.message}"


def _is_without_room(model: str, ledger: Ledger) -> bool:
    """Whether a load of ours has not begun yet."""
    if (node := ledger.loading.get(model)) is None:
        return False
    promise = ledger.promises.get((node, model))
    return promise is None or promise.before is None


def _verdict(
    model: str,
    node: Node,
    replica: Replica | None,
    snapshot: Snapshot,
    ledger: Ledger,
    now: float,
) -> Verdict:
    status: Literal["up", "down", "draining"] = "up" if node.healthy else "down"
    if node.healthy and node.draining:
        status = "draining"
    profile = snapshot.catalogue.profiles.get(model)
    seen = None if profile is None else assess(profile, node, snapshot, ledger, now)
    key = (node.name, model)
    serves = (
        replica is not None
        and replica.status in ABLE
        and replica.unservable is None
        and node.is_available
    )
    points = None
    if replica is not None and serves:
        points = round(score(replica, snapshot, ledger, now), 2)
    failed = seen.failure if seen else ledger.failures.get(key)
    if failed is not None and failed.until <= now:
        failed = None
    size = None if seen is None or seen.share is None else seen.share * len(seen.devices)
    is_open = seen is not None and seen.infeasible is None and seen.absent is None
    verdict = Verdict(
        node=node.name,
        status=status,
        words="",
        model_status=replica.status if replica else None,
        unservable=replica.unservable if replica else None,
        in_flight=ledger.in_flight.get(key, 0),
        score=points,
        suspect=is_suspect(ledger.faults.get(key), now),
        infeasible=seen.infeasible if seen else None,
        failure=failed.message if failed else None,
        retry_seconds=math.ceil(failed.until - now) if failed else None,
        free_mb=dict(free(node, snapshot, ledger)) if node.healthy else {},
        needs_mb=size,
        devices=list(seen.devices) if seen else [],
        fits=seen.fits if seen and is_open else None,
        victims=list(seen.victims) if seen else [],
        blockers=list(seen.blockers) if seen else [],
        crowded=seen.crowded if seen else None,
    )
    gated = ledger.is_gated(node.name, model)
    return msgspec.structs.replace(verdict, words=_words(node, replica, seen, verdict, gated=gated))


def _words(
    node: Node, replica: Replica | None, seen: Assessment | None, verdict: Verdict, *, gated: bool
) -> str:
    said = []
    if replica is not None:
        said.append(_HERE.get(replica.status, f"is {replica.status} there"))
    if replica is not None and replica.unservable is not None:
        said.append(f"can't answer: {replica.unservable}")
    if gated:
        said.append("is being unloaded, and gets nothing new")
    if verdict.suspect:
        said.append("failed a moment ago, and is asked last")
    if not node.healthy:
        said.append(f"the node is down: {node.trouble or 'not polled yet'}")
    elif node.draining:
        said.append(f"drained: cortexd undrain {node.name} puts it back into service")
    if seen is not None and (replica is None or replica.status in _ABSENT):
        said += _room(seen, verdict)
    elif seen is None and verdict.model_status == FAILED:
        said += [words for words in [_failed(verdict)] if words is not None]
    elif seen is None and replica is None and node.is_available:
        said.append("the node does not know it, and the catalogue does not list it")
    return "; ".join(said)


def _room(seen: Assessment, verdict: Verdict) -> list[str]:
    """What a load would meet there."""
    if seen.infeasible is not None:
        return [f"can't load it: {seen.infeasible}"]
    if seen.absent is not None:
        return ["its devices are not known yet"] if verdict.status == "up" else []
    said = []
    if (failed := _failed(verdict)) is not None:
        said.append(failed)
    on = _devices(verdict.devices)
    left = f"{min((seen.free.get(i, 0.0) for i in seen.devices), default=0.0):.0f} MiB free"
    if seen.crowded is not None:
        said.append(f"no room: {seen.crowded}")
    elif seen.share is None:
        said.append(f"what it takes is not known (set vram_mb); {left} on {on}")
    elif seen.fits_soon:
        said.append(
            "has room once it reports the memory of unloaded models: "
            f"{seen.share:.0f} MiB needed on {on}, {left}"
        )
    elif seen.fits:
        said.append(f"has room: {seen.share:.0f} MiB needed on {on}, {left}")
    else:
        way = []
        if seen.victims:
            way.append(f"{_names(seen.victims)} {_is(seen.victims)} unloaded")
        if seen.blockers:
            way.append(f"{_names(seen.blockers)} {_is(seen.blockers)} no longer needed")
        said.append(f"has room once {' and '.join(way)}: {seen.share:.0f} MiB needed on {on}")
    return said


def _failed(verdict: Verdict) -> str | None:
    if verdict.failure is None:
        return None
    return f"a load failed: {verdict.failure}; tried again in {verdict.retry_seconds} s"


def _devices(indices: list[int]) -> str:
    return f"device{'' if len(indices) == 1 else 's'} {', '.join(map(str, indices))}"


def _names(models: tuple[str, ...]) -> str:
    return ", ".join(models)


def _is(models: tuple[str, ...]) -> str:
    return "is" if len(models) == 1 else "are"
