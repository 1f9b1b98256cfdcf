"""One load, carried out: room for it, the call to its node, the wait until it is resident."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from cortexd.control.entry import Entry
from cortexd.control.events import Events
from cortexd.control.lifecycle import Event
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.room import Room
from cortexd.fleet.placement import Placement
from cortexd.fleet.route_refusals import not_loaded
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import LOADED, LOADING, RELOADING

log = logging.getLogger(__name__)

_ON_ITS_WAY: Final = frozenset({LOADED, LOADING, RELOADING})
_FULL: Final = 507
# Statuses of loads that a neuron refuses before the attempt, and their codes.
_REFUSED_BEFORE: Final = frozenset({404, 422})
_LACKING: Final = frozenset(
    {"model_not_found", "no_such_quant", "unknown_harness", "model_too_large"}
)


class Loader:
    """Has nodes load models. Beside the table, which starts it, it alone changes an entry: it says
    when room is made and when the load begins."""

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        events: Events,
        room: Room,
        reservations: Reservations,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._events = events
        self._room = room
        self._reservations = reservations

    def reserve(self, model: str, placement: Placement) -> None:
        """Take the memory for it, before anybody else decides: now that it is placed."""
        if placement.has_room:
            self._reservations.begin(placement.node, model, placement.needs)
        elif not placement.blockers:
            self._reservations.claim(placement.node, model, placement.needs)

    def release(self, entry: Entry, *, failed: bool) -> None:
        """Its node is not at it any more."""
        self._reservations.end(entry.node or "", entry.model, failed=failed)

    async def bring(self, entry: Entry, placement: Placement, moved: Callable[[str], None]) -> None:
        """Until it is resident; its memory is reserved. `moved`: told when it goes to another node
        than was thought.

        Raises NodeError when the load failed, Refusal when there is no room for it, NotNeeded when
        none is made any more.
        """
        model, profile = entry.model, self._registry.snapshot.catalogue.profiles.get(entry.model)
        if profile is not None and not placement.has_room:
            entry.happens(Event.NO_ROOM)
            placement = await self._room.make(profile, placement, moved, unasked=entry.is_unasked)
        node = placement.node
        entry.begins(self._registry.snapshot.nodes[node].epoch)
        log.info("loading %r on %s", model, node)
        self._events.tell("load_started", node=node, model=model)
        has_waited = has_cleared = False
        while True:
            try:
                return await self._load(entry, placement)
            except NodeError as error:
                if not _is_full(error):
                    raise
                log.info("%s has no room for %r: %s", node, model, error.words)
                if not entry.may_evict:
                    raise not_loaded(model) from error
                if not has_waited and self._reservations.was_just_unloaded(node):
                    has_waited = True  # the memory may only not be free yet
                elif profile is None or has_cleared:
                    raise
                elif await self._room.clear(profile, placement):
                    has_waited, has_cleared = False, True
                else:
                    raise
            await self._room.wait_freed(node)
            log.info("loading %r on %s once more", model, node)

    async def _load(self, entry: Entry, placement: Placement) -> None:
        model, node = entry.model, placement.node
        entry.is_called = True
        try:
            if await self._clients[node].load(placement.spec) == LOADED:
                return
        finally:
            entry.is_called = False
        # It took note of it: /models says what becomes of it.
        self._registry.tell(node, model, LOADING)
        while True:
            await self._registry.wait_changed()
            info = self._registry.snapshot.nodes[node].models.get(model)
            if info is None or info.status not in _ON_ITS_WAY:
                words = info.error if info and info.error else "the load has vanished"
                raise NodeError(words)
            if info.status != LOADING:
                return


def lacks_model(error: NodeError) -> bool:
    """Return whether the node can't load the model however often it is asked.

    It has no file for it, not in that quant, not the harness, or not the memory.
    """
    if error.code is None:
        return error.status in _REFUSED_BEFORE
    return error.code in _LACKING


def _is_full(error: NodeError) -> bool:
    words = str(error).lower()
    return error.status == _FULL or error.code == "insufficient_vram" or "out of memory" in words
