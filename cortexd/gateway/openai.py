"""GET /v1/models: the whole fleet's models as OpenAI lists them, from memory."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from cortexd.fleet.aliases import points_nowhere
from cortexd.fleet.assessment import infeasibility
from cortexd.fleet.loadable import no_file_reason
from cortexd.fleet.route_refusals import listed_before, unknown_model
from cortexd.fleet.snapshot import Ledger, Node, Snapshot
from cortexd.gateway.steps import in_steps
from cortexd.wire.neuron import (
    FAILED,
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    UNKNOWN,
    UNLOADED,
    Limit,
    Model,
)
from cortexd.wire.openai import Location, ModelCard, ModelList

# What the fleet says of a model that several nodes know: the best of their words.
_PRECEDENCE = {LOADED: 0, RELOADING: 0, LOADING: 1, RECOVERING: 2, UNLOADED: 3, FAILED: 4}
_SHOWN = {RELOADING: LOADED}
MISSING: Final = "missing"  # of an alias whose model is nowhere
_encode: Final = msgspec.json.Encoder().encode


class ModelBook:
    """Lists models. `created` (Unix seconds) is the same on every call."""

    def __init__(self, created: int) -> None:
        self._created = created
        self._known: tuple[_Facts, bytes] | None = None

    def list(self, snapshot: Snapshot, ledger: Ledger) -> ModelList:
        """Return the catalogue, the models of nodes (before the start, too) and the aliases."""
        return ModelList([self.card(name, snapshot, ledger) for name in _names(snapshot)])

    def cached(self, snapshot: Snapshot, ledger: Ledger) -> bytes | None:
        """Return the encoded list if nothing in it has changed since it was made; else None."""
        known = self._known
        return known[1] if known is not None and known[0] == _Facts.of(snapshot, ledger) else None

    async def encoded(self, snapshot: Snapshot, ledger: Ledger) -> bytes:
        """Return the list as JSON, made in steps and kept until something in it changes."""
        facts = _Facts.of(snapshot, ledger)
        listed = await in_steps(self._pieces(snapshot, ledger))
        if facts == _Facts.of(snapshot, ledger):  # no load began or ended meanwhile
            self._known = facts, listed
        return listed

    def _pieces(self, snapshot: Snapshot, ledger: Ledger) -> Iterator[bytes]:
        """Yield `list` as JSON, piece by piece."""
        yield b'{"object":"list","data":['
        comma = b""
        for name in _names(snapshot):
            yield comma + _encode(self.card(name, snapshot, ledger))
            comma = b","
        yield b"]}"

    def card(self, name: str, snapshot: Snapshot, ledger: Ledger) -> ModelCard:
        """Return one model or alias. Raises Refusal (model_not_found, feasible_node_unhealthy)."""
        catalogue = snapshot.catalogue
        model = catalogue.resolve(name)
        profile = catalogue.profiles.get(model)
        found = _reported(model, snapshot)
        unheard = listed_before(model, snapshot)
        if profile is None and not (found or unheard or name in catalogue.aliases):
            raise unknown_model(name, snapshot)
        statuses = [info.status for node, info in found if node.healthy]
        if model in ledger.loading:
            statuses.append(LOADING)
        status = min(statuses, key=lambda s: _PRECEDENCE.get(s, 9), default=UNLOADED)
        status = _SHOWN.get(status, status)
        is_missing = name in catalogue.aliases and points_nowhere(name, snapshot)
        infos = [info for _, info in found]
        limit = _smallest(
            [profile.limit if profile is not None else None, *(info.limit for info in infos)]
        )
        context = limit.context if limit else None
        return ModelCard(
            id=name,
            created=self._created,
            loaded=status == LOADED,
            status=MISSING if is_missing else status if status in _PRECEDENCE else UNLOADED,
            locations=[
                *(Location(node.name, info.status, info.vram_used_mb) for node, info in found),
                *(Location(node.name, UNKNOWN) for node in unheard),
            ],
            feasible_on=sorted(
                node.name
                for node in snapshot.nodes.values()
                if profile is not None
                and node.hardware is not None
                and infeasibility(profile, node) is None
                and no_file_reason(profile, node, ledger) is None
            ),
            capabilities=_known(
                (list(profile.capabilities) if profile else None) or _first(infos, "capabilities")
            ),
            limit=_known(limit),
            max_model_len=_known(context),
            context_length=_known(context),
            cost=_known((profile and profile.cost) or _first(infos, "cost")),
            tool_call=_known(_first(infos, "tool_call")),
            reasoning=_known(_first(infos, "reasoning")),
            alias_of=model if model != name else msgspec.UNSET,
        )


# Fields of a node that change with every poll and are in no card.
_GAUGES: Final = frozenset(
    {
        "busy",
        "failures",
        "health",
        "health_at",
        "last_contact",
        "nonsense",
        "told",
        "trouble",
        "unhealthy_since",
    }
)
_SHOWN_FIELDS: Final = tuple(field for field in Node.__struct_fields__ if field not in _GAUGES)


class _Facts:
    """The inputs of a list of models; equal inputs give an equal list."""

    def __init__(self, ledger: Ledger, parts: builtins.list[Any]) -> None:
        self._loading = dict(ledger.loading)
        self._unloadable = set(ledger.unloadable)
        self._parts = parts

    @classmethod
    def of(cls, snapshot: Snapshot, ledger: Ledger) -> _Facts:
        nodes = snapshot.nodes.values()
        parts = [getattr(node, field) for node in nodes for field in _SHOWN_FIELDS]
        unheard = [node.is_unheard for node in nodes]
        return cls(ledger, [snapshot.catalogue, snapshot.settled, *unheard, *parts])

    def __eq__(self, other: object) -> bool:
        """Compare mappings by identity only: comparing those of a thousand models takes long."""
        if not isinstance(other, _Facts) or len(self._parts) != len(other._parts):
            return False
        if self._loading != other._loading or self._unloadable != other._unloadable:
            return False
        return all(
            a is b or (isinstance(a, _PLAIN) and a == b)
            for a, b in zip(self._parts, other._parts, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]


_PLAIN: Final = (str, int, float)


def _names(snapshot: Snapshot) -> builtins.list[str]:
    catalogue = snapshot.catalogue
    names = {*catalogue.profiles, *snapshot.replicas, *catalogue.aliases}
    for node in snapshot.nodes.values():
        if node.is_unheard:
            names.update(node.listed_before)
    return sorted(names)


def _reported(model: str, snapshot: Snapshot) -> list[tuple[Node, Model]]:
    nodes = [snapshot.nodes[replica.node] for replica in snapshot.replicas.get(model, ())]
    return [(node, node.models[model]) for node in nodes]


def _smallest(limits: Iterable[Limit | None]) -> Limit | None:
    """Return the limits that hold on whichever replica serves; None: none are stated."""
    stated = [limit for limit in limits if limit is not None]
    if not stated:
        return None

    def least(field: str) -> int | None:
        values = [value for each in stated if (value := getattr(each, field)) is not None]
        return min(values, default=None)

    return Limit(least("context"), least("input"), least("output"))


def _first(infos: list[Model], field: str) -> Any:
    for info in infos:
        if (value := getattr(info, field)) is not None:
            return value
    return None


def _known(value: Any) -> Any:
    return msgspec.UNSET if value is None else value
