"""What a poll changes: a node and an observation make the next node.

An observation carries the time its poll was sent. A fact that we know from our own act (a load
that has just succeeded) is newer than any poll sent before it, and stands until a later one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.loadable import files_of
from cortexd.fleet.snapshot import Node, Told
from cortexd.wire.neuron import (
    LOADED,
    LOADING,
    RELOADING,
    STATUSES,
    UNKNOWN,
    Discovery,
    Health,
    Model,
)

# seconds by which a node's uptime may lag behind our clock before it counts as restarted
UPTIME_SLACK = 5.0
# seconds of uptime up to which a process that lags counts as a new one; it may be the old one
YOUNG = 60.0
MOST_REQUESTS = 1_000_000  # running or queued; a larger number is none


class Observation(msgspec.Struct, frozen=True):
    """One round of polling a node. Times are monotonic seconds.

    models: None when /models failed; `failure` then says why.
    health, discovery: None when not asked or not answered; `health_failure` and
    `discovery_failure` say why they were not answered.
    """

    sent: float
    received: float
    models: list[Model] | None = None
    health: Health | None = None
    discovery: Discovery | None = None
    failure: str | None = None
    health_failure: str | None = None
    discovery_failure: str | None = None


def is_restarted(node: Node, health: Health, now: float) -> bool:
    """Return whether the node is another process than when it last answered.

    Its uptime lags then, and is near 0. An uptime that only lags is of a host that was suspended,
    or whose clock was set back: the process ran already at the last answer, or has not lost a
    second since.
    """
    if node.health is None or node.health.uptime_secs is None or health.uptime_secs is None:
        return False
    before, uptime, elapsed = node.health.uptime_secs, health.uptime_secs, now - node.health_at
    if uptime >= before + elapsed - UPTIME_SLACK or uptime > elapsed + UPTIME_SLACK:
        return False
    return uptime < before or uptime < YOUNG


def is_described_anew(node: Node, health: Health, now: float) -> bool:
    """Return whether /discovery may have changed: the node restarted, or its files have changed."""
    version = health.loadable_version
    if version and node.hardware is not None and version != node.hardware.loadable_version:
        return True
    return is_restarted(node, health, now)


def observed(node: Node, seen: Observation, catalogue: Catalogue, *, unhealthy_after: int) -> Node:
    """The node after a poll. A node is healthy from its first answer, unhealthy after
    `unhealthy_after` failures in a row."""
    if seen.models is None:
        failures = node.failures + 1
        healthy = node.healthy and failures < unhealthy_after
        return msgspec.structs.replace(
            node,
            polled=True,
            failures=failures,
            healthy=healthy,
            unhealthy_since=seen.received if node.healthy and not healthy else node.unhealthy_since,
            trouble=seen.failure,
        )
    epoch, hardware, files = node.epoch, node.hardware, node.files
    health = seen.health or node.health
    if seen.health is not None and is_restarted(node, seen.health, seen.received):
        epoch, hardware, files = epoch + 1, None, None
    if seen.discovery is not None and seen.discovery != hardware:
        hardware, files = seen.discovery, files_of(seen.discovery)
    told = {model: fact for model, fact in node.told.items() if fact.at >= seen.sent}
    models = _listed(seen.models, catalogue)
    _add_activation(models, health)
    for model, fact in told.items():
        _set_status(models, model, fact.status)
    return msgspec.structs.replace(
        node,
        polled=True,
        healthy=True,
        unhealthy_since=None,
        failures=0,
        trouble=None,
        last_contact=seen.received,
        hardware=hardware,
        files=node.files if files == node.files else files,
        health=health,
        health_at=seen.received if seen.health is not None else node.health_at,
        busy=node.busy if seen.health is None else _busy(seen.health, models, catalogue),
        epoch=epoch,
        # An unchanged mapping keeps its identity: the index need not be looked at.
        models=node.models if models == node.models else MappingProxyType(models),
        told=told,
    )


def told(node: Node, model: str, status: str, at: float) -> Node:
    """The node with a fact of our own about one of its models."""
    models = dict(node.models)
    _set_status(models, model, status)
    return msgspec.structs.replace(
        node, models=MappingProxyType(models), told={**node.told, model: Told(status, at)}
    )


def forgotten(node: Node, model: str) -> Node:
    """The node without a model that it turned out not to have."""
    return msgspec.structs.replace(
        node,
        models=MappingProxyType({key: info for key, info in node.models.items() if key != model}),
        told={key: fact for key, fact in node.told.items() if key != model},
    )


def _listed(models: list[Model], catalogue: Catalogue) -> dict[str, Model]:
    listed: dict[str, Model] = {}
    for info in models:
        model = catalogue.bare(info.id)
        status = info.status if info.status in STATUSES else UNKNOWN
        if model != info.id or status != info.status:
            info = msgspec.structs.replace(info, id=model, status=status)  # noqa: PLW2901
        listed.setdefault(model, info)
    return listed


def _add_activation(models: dict[str, Model], health: Health | None) -> None:
    """What the node is bringing up by itself counts as loading, listed or not."""
    activation = health.activation if health else None
    if activation is None:
        return
    coming = [activation.in_progress] if activation.in_progress else []
    if activation.state == "pre_warming":
        coming += activation.pending or []
    for model in coming:
        info = models.get(model)
        if info is None or info.status not in {LOADED, RELOADING}:
            _set_status(models, model, LOADING)


def _busy(health: Health, models: Mapping[str, Model], catalogue: Catalogue) -> dict[str, int]:
    """Requests that run or queue, of the models that are there."""
    busy: dict[str, int] = {}
    for load in health.models or ():
        model = catalogue.bare(load.id)
        counts = (load.in_flight or 0, load.queue_depth or 0)
        if model in models and all(0 <= count <= MOST_REQUESTS for count in counts):
            busy[model] = max(sum(counts), busy.get(model, 0))
    return busy


def _set_status(models: dict[str, Model], model: str, status: str) -> None:
    info = models.get(model)
    if info is None:
        models[model] = Model(model, status)
    elif info.status != status:
        models[model] = msgspec.structs.replace(info, status=status, servable=None)
