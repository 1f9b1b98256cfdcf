"""GET /v1/models: the whole fleet's models as OpenAI lists them, from memory."""

from __future__ import annotations

from typing import Any

import msgspec

from cortexd.fleet.assessment import infeasibility
from cortexd.fleet.loadable import no_file_reason
from cortexd.fleet.routing import listed_before, unknown_model
from cortexd.fleet.snapshot import Ledger, Node, Snapshot
from cortexd.wire.neuron import (
    FAILED,
    LOADED,
    LOADING,
    RECOVERING,
    RELOADING,
    UNKNOWN,
    UNLOADED,
    Model,
)
from cortexd.wire.openai import Location, ModelCard, ModelList

# What the fleet says of a model that several nodes know: the best of their words.
_PRECEDENCE = {LOADED: 0, RELOADING: 0, LOADING: 1, RECOVERING: 2, UNLOADED: 3, FAILED: 4}
_SHOWN = {RELOADING: LOADED}


class ModelBook:
    """Lists models. `created` (Unix seconds) is the same on every call."""

    def __init__(self, created: int) -> None:
        self._created = created

    def list(self, snapshot: Snapshot, ledger: Ledger) -> ModelList:
        """The catalogue, what nodes report or did before the start, and the aliases; by id."""
        catalogue = snapshot.catalogue
        names = {*catalogue.profiles, *snapshot.replicas, *catalogue.aliases}
        for node in snapshot.nodes.values():
            if node.is_unheard:
                names.update(node.listed_before)
        return ModelList([self.card(name, snapshot, ledger) for name in sorted(names)])

    def card(self, name: str, snapshot: Snapshot, ledger: Ledger) -> ModelCard:
        """One model or alias. Raises Refusal (model_not_found, feasible_node_unhealthy)."""
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
        infos = [info for _, info in found]
        limit = (profile and profile.limit) or _first(infos, "limit")
        context = limit.context if limit else None
        return ModelCard(
            id=name,
            created=self._created,
            loaded=status == LOADED,
            status=status if status in _PRECEDENCE else UNLOADED,
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


def _reported(model: str, snapshot: Snapshot) -> list[tuple[Node, Model]]:
    nodes = [snapshot.nodes[replica.node] for replica in snapshot.replicas.get(model, ())]
    return [(node, node.models[model]) for node in nodes]


def _first(infos: list[Model], field: str) -> Any:
    for info in infos:
        if (value := getattr(info, field)) is not None:
            return value
    return None


def _known(value: Any) -> Any:
    return msgspec.UNSET if value is None else value
