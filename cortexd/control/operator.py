"""What an operator asks for: have this model resident (there), or have it gone; take this node out
of service, or back in.

Loads go through the load table like everybody's, so that a load is one load whoever wants it; what
is an operator's alone is naming the node, and being told of the end without standing in line.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from cortexd import errors
from cortexd.config.current import Current
from cortexd.control.coldload import LoadTable
from cortexd.control.lifecycle import State
from cortexd.control.refusals import cannot_load, load_failed, still_loading
from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.control.unloads import Unloads
from cortexd.daemon.state import StateFile
from cortexd.errors import Refusal
from cortexd.fleet.aliases import name_alias
from cortexd.fleet.assessment import infeasibility
from cortexd.fleet.memory import RESIDENT
from cortexd.fleet.placement import Placement, load_request
from cortexd.fleet.routing import Lazy, Load, Query, Refuse, Wait, decide
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import (
    LOADED,
    LoadRequest,
)

CANDIDATES: Final = 2  # nodes that are tried, one after the other, when none is named

_COMING: Final = RESIDENT - {LOADED}


class Loaded(msgspec.Struct, frozen=True):
    """Where a model is resident now, and the seconds that were waited for it."""

    node: str
    seconds: float


class Operator:
    """Does what is asked for."""

    def __init__(
        self,
        registry: Registry,
        table: LoadTable,
        unloads: Unloads,
        state: StateFile,
        current: Current,
    ) -> None:
        self._registry = registry
        self._table = table
        self._unloads = unloads
        self._state = state
        self._current = current

    async def load(self, name: str, node: str | None = None) -> Loaded:
        """Load a model on `node`, or where routing would place it.

        An operator's load ignores the back-off of an earlier failure, and that the named node was
        known not to have the file. It goes on when the caller is cancelled. Raises Refusal.
        """
        began = now()
        model = self._registry.snapshot.catalogue.resolve(name)
        self._check_node(node)
        ledger = self._registry.ledger
        for book in (ledger.failures, ledger.unloadable):
            for key in [key for key in book if key[1] == model and node in (None, key[0])]:
                del book[key]
        try:
            async with asyncio.timeout(self._current.config.loading.timeout):
                where = await self._bring(model, node)
        except TimeoutError:
            raise still_loading(model, node) from None
        except Refusal as refusal:
            raise name_alias(refusal, name, model) from refusal
        return Loaded(where, round(now() - began, 3))

    async def unload(self, name: str, node: str | None = None, *, force: bool = False) -> list[str]:
        """Have a model gone, from `node` or from every node; the nodes that had it.

        A load of ours is cancelled. A model at work is left alone, unless `force`. Raises Refusal.
        """
        snapshot = self._registry.snapshot
        model = snapshot.catalogue.resolve(name)
        self._check_node(node)
        replicas, entry = snapshot.replicas.get(model, ()), self._table.ours(model)
        if not replicas and entry is None and model not in snapshot.catalogue.profiles:
            raise name_alias(_not_found(model), name, model)
        there = {each.node for each in replicas if each.status in RESIDENT}
        if entry is not None and entry.node is not None:
            there.add(entry.node)
        names = sorted(there if node is None else there & {node})
        ends = await asyncio.gather(*(self._unload(model, each, force=force) for each in names))
        gone = [each for each, end in zip(names, ends, strict=True) if end is None]
        for refusal in ends:
            if refusal is not None:
                also = f" It was unloaded on {', '.join(gone)}." if gone else ""
                raise Refusal(refusal.kind, refusal.message + also)
        return gone

    def drain(self, node: str) -> int:
        """Take a node out of service, over restarts too; how many requests still run there.

        Raises Refusal.
        """
        self._check_node(node)
        self._registry.drain(node)
        self._keep_drained({*self._state.state.drained, node})
        return self._running_on(node)

    def undrain(self, node: str) -> int:
        """Put a node back into service; how many requests run there. Raises Refusal."""
        self._check_node(node)
        self._registry.undrain(node)
        self._keep_drained({*self._state.state.drained} - {node})
        return self._running_on(node)

    async def check_state(self) -> str | None:
        """Return why a restart would forget the change that was just made; None: it would not."""
        return await self._state.check()

    # Loading.

    async def _bring(self, model: str, node: str | None) -> str:
        """The node where it has come to be loaded."""
        registry, failed = self._registry, 0
        while not registry.snapshot.settled:  # what we have not asked yet may have it
            await registry.wait_changed()
        while True:
            self._check_node(node)  # it may have left meanwhile
            if (there := self._resident(model, node)) is not None:
                return there
            entry = self._table.entry(model)
            if entry is None:
                step = self._anywhere(model) if node is None else self._on(model, node)
                if step is None:
                    await registry.wait_changed()
                    continue
                entry = self._table.join(step)
            await entry.wait_over()
            if entry.refusal is not None:
                raise entry.refusal.again()
            if entry.state is State.READY and node in (None, entry.node):
                return entry.node or ""
            if entry.state is State.FAILED and entry.is_ours:
                lacking = registry.ledger.unloadable.get((entry.node or "", model))
                if lacking is not None:  # routing leaves that node out
                    if node is not None:
                        raise cannot_load(model, node, lacking)
                    continue
                failed += 1
                if failed == CANDIDATES or entry.node == node:
                    raise self._failure(model)

    def _resident(self, model: str, node: str | None) -> str | None:
        snapshot = self._registry.snapshot
        for replica in snapshot.replicas.get(model, ()):
            if (
                replica.status == LOADED
                and replica.unservable is None
                and snapshot.nodes[replica.node].is_available
                and not self._registry.ledger.is_gated(replica.node, model)
                and node in (None, replica.node)
            ):
                return replica.node
        return None

    def _anywhere(self, model: str) -> Load | Wait | None:
        """As routing would have it; None: wait, it comes back by itself. Raises Refusal."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        match decide(Query(model), snapshot, ledger, now()):
            case Refuse(refusal):
                raise refusal
            case Load() | Wait() as step:
                return step
            case Lazy(replica):
                return Load(model, self._placement(model, snapshot.nodes[replica.node]))
            case _:
                return None

    def _on(self, model: str, name: str) -> Load | None:
        """The load that brings it there; None: wait, somebody else brings it. Raises Refusal."""
        node = self._registry.snapshot.nodes[name]
        info = node.models.get(model)
        if not node.is_available:
            why = "draining" if node.healthy else f"unhealthy ({node.trouble or 'not polled yet'})"
            raise Refusal(
                errors.FEASIBLE_NODE_UNHEALTHY,
                f"The node {name} is {why}; try again when it is back, or name another.",
            )
        if self._registry.ledger.is_gated(name, model):
            return None
        if info is not None and info.status == LOADED:
            raise Refusal(
                errors.MODEL_UNSERVABLE,
                f"The model {model!r} is resident on {name} but can't answer; unload it first.",
            )
        if (info is not None and info.status in _COMING) or (
            model in self._registry.ledger.loading  # one of ours is late: one at a time
        ):
            return None
        return Load(model, self._placement(model, node))

    def _placement(self, model: str, node: Node) -> Placement:
        profile = self._registry.snapshot.catalogue.profiles.get(model)
        if profile is not None:
            if (reason := infeasibility(profile, node)) is not None:
                raise cannot_load(model, node.name, reason)
            return Placement(node.name, load_request(profile, node.hardware))
        info = node.models.get(model)
        if info is None:
            raise _not_found(model, node.name)
        return Placement(node.name, LoadRequest(info.id, info.harness, devices=info.devices))

    def _failure(self, model: str) -> Refusal:
        return load_failed(model, self._registry.ledger.failed(model), "Ask for it again.")

    # Unloading.

    async def _unload(self, model: str, node: str, *, force: bool) -> Refusal | None:
        def cancel() -> bool:
            entry = self._table.ours(model)
            if entry is None or entry.node != node:
                return False
            self._table.cancel(entry)
            return True  # nothing is at work there yet

        words = "an operator asked for it"
        return await self._unloads.unload(node, model, "operator", words, force=force, first=cancel)

    # Nodes.

    def _keep_drained(self, drained: set[str]) -> None:
        """Names that are not configured stay: their nodes may come back."""
        names = tuple(sorted(drained))
        self._state.put(msgspec.structs.replace(self._state.state, drained=names))

    def _running_on(self, node: str) -> int:
        in_flight = self._registry.ledger.in_flight
        return sum(count for (where, _), count in in_flight.items() if where == node)

    def _check_node(self, node: str | None) -> None:
        nodes = self._registry.snapshot.nodes
        if node is not None and node not in nodes:
            raise Refusal(
                errors.UNKNOWN_NODE,
                f"No node is called {node!r}; there is {', '.join(sorted(nodes)) or 'none'}.",
                param="node",
            )


def _not_found(model: str, node: str = "no node") -> Refusal:
    has = "has it" if node == "no node" else "does not have it"
    return Refusal(
        errors.MODEL_NOT_FOUND,
        f"The model {model!r} can't be found: {node} {has} and the catalogue does not list it. "
        "GET /v1/models lists what there is.",
    )
