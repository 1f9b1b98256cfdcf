"""Making room: who must go for a model that is asked for, and the wait until the memory is free.

`fleet.placement` says where it could go and who is in the way; here that is carried out. Idle
models are unloaded. For busy ones it waits; when that takes too long, one of them gets no new
requests any more, and goes as soon as it is idle. Nothing that works is ever unloaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.turns import now
from cortexd.control.unloads import Unloads
from cortexd.fleet.memory import free
from cortexd.fleet.placement import NoPlacement, Placement, place
from cortexd.fleet.residents import displaceable, residents
from cortexd.fleet.route_refusals import refusal
from cortexd.fleet.routing import Query, Serve, decide

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between two looks at who is busy
SETTLE: Final = 10.0  # seconds for a node to report the memory of what it has unloaded
SPARED: Final = 60.0  # seconds for which a model that would not go is left alone, at most


class NotNeeded(Exception):
    """A load for which room was made is needed no more: there is a copy that serves, on `node`."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


class Room:
    """Makes room for loads."""

    def __init__(self, registry: Registry, unloads: Unloads, reservations: Reservations) -> None:
        self._registry = registry
        self._unloads = unloads
        self._reservations = reservations
        self._insisting: dict[str, str] = {}  # node → who has the next room there

    async def make(
        self,
        profile: Profile,
        placement: Placement,
        moved: Callable[[str], None],
        *,
        unasked: bool = False,
    ) -> Placement:
        """The placement that fits now, which may be another one by then; its memory is reserved.

        moved: told of every node where room is being made. unasked: for a copy that nobody waits
        for. Raises Refusal when there will be no room, and NotNeeded.
        """
        wait = _Wait(self._registry, self._reservations, self._insisting, profile.id)
        try:
            while not placement.has_room:
                if wait.node != placement.node:
                    moved(placement.node)
                wait.goes_on(placement)
                if placement.awaits_memory:
                    await self._report_of(placement.node)
                elif placement.blockers:
                    await self._wait_a_moment()
                else:
                    await self._unload(placement, profile.id)
                if not unasked and (server := self._server(profile.id)) is not None:
                    raise NotNeeded(server)
                placement = self._place(profile, unasked=unasked)
            if wait.node != placement.node:
                moved(placement.node)
        finally:
            wait.ends()
        self._reservations.begin(placement.node, profile.id, placement.needs)
        return placement

    async def clear(self, profile: Profile, placement: Placement) -> bool:
        """Unload every idle model that it may displace on its devices, on a node that has said
        that it does not fit; whether any went."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        node, devices = snapshot.nodes[placement.node], set(placement.spec.devices or ())
        words = f"{node.name} has said that there is no room for {profile.id!r}"
        has_gone = False
        for resident in displaceable(profile, node, snapshot, ledger, now()):
            if not devices or devices & set(resident.devices):
                end = await self._unloads.unload(node.name, resident.model, "room", words)
                has_gone = has_gone or end is None
        return has_gone

    async def wait_freed(self, node: str) -> None:
        """Wait for the next report of a node, and for all memory that is known to be coming."""
        await self._report_of(node)
        while node in self._registry.ledger.freed:
            await self._report_of(node)

    async def _unload(self, placement: Placement, model: str) -> None:
        node, need = placement.node, sum(placement.needs.values())
        for victim in placement.victims:
            words = f"makes room for {model!r}, which needs {need:,.0f} MiB"
            end = await self._unloads.unload(node, victim, "room", words)
            if end is None:
                continue
            log.info("%r stays on %s: %s", victim, node, end.message)
            if end.kind is errors.BUSY:  # somebody was faster; its node will say so
                await self._report_of(node)
            else:
                self._spare(node, victim)
            return
        # Its memory counts when the node reports it, not before.
        began = now()
        while not self._fits(placement, model) and now() - began < SETTLE:
            await self._report_of(node)

    async def _report_of(self, node: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                await self._registry.wait_polled(node, now())

    def _fits(self, placement: Placement, model: str) -> bool:
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        room = free(snapshot.nodes[placement.node], snapshot, ledger, besides=model)
        return all(room.get(index, 0) >= need for index, need in placement.needs.items())

    def _server(self, model: str) -> str | None:
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        decision = decide(Query(model), snapshot, ledger, now())
        return decision.replica.node if isinstance(decision, Serve) else None

    def _place(self, profile: Profile, *, unasked: bool) -> Placement:
        snapshot, ledger, moment = self._registry.snapshot, self._registry.ledger, now()
        for kept in (ledger.spared, ledger.stubborn):
            for key in [key for key, until in kept.items() if until <= moment]:
                del kept[key]
        placed = place(profile, snapshot, ledger, moment, unasked=unasked)
        if isinstance(placed, NoPlacement):
            raise refusal(profile.id, snapshot, placed, moment)
        return placed

    def _spare(self, node: str, model: str) -> None:
        self._registry.ledger.spared[node, model] = now() + SPARED

    async def _wait_a_moment(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._registry.wait_changed()


class _Wait:
    """The wait of one model for room. When it has been long it insists: the memory is promised to
    it, and one of those at work gets no new requests.

    One at a time insists on a node: were the memory promised to all who wait for it, each would
    wait for the others' promises for ever.
    """

    def __init__(
        self,
        registry: Registry,
        reservations: Reservations,
        insisting: dict[str, str],
        model: str,
    ) -> None:
        self._registry = registry
        self._reservations = reservations
        self._insisting = insisting
        self._model = model
        self._began = now()
        self._gates = ExitStack()
        self._gated: str | None = None
        self._gated_at = 0.0
        self.node: str | None = None

    def goes_on(self, placement: Placement) -> None:
        """It is still in this way that there could be room."""
        in_the_way = (*placement.victims, *placement.blockers)
        if self.node != placement.node or self._gated not in in_the_way:
            self._open()
        if self.node not in (None, placement.node):
            self._withdraw()
        self.node = placement.node
        if placement.blockers:
            self._insist(placement)
        if self._insisting.get(self.node) == self._model or not placement.blockers:
            self._reservations.claim(self.node, self._model, placement.needs)
        else:
            self._reservations.end(self.node, self._model)

    def ends(self) -> None:
        """It is over, well or not."""
        self._open()
        self._withdraw()

    def _insist(self, placement: Placement) -> None:
        policy, moment = self._registry.snapshot.policy, now()
        if moment - self._began < policy.patience:
            return
        if self._insisting.setdefault(placement.node, self._model) != self._model:
            return
        if self._gated is not None and moment - self._gated_at >= policy.gate_timeout:
            log.warning(
                "%r on %s still works after %g s without new requests; it gets some again, and %r "
                "looks for another place",
                self._gated,
                placement.node,
                policy.gate_timeout,
                self._model,
            )
            until = moment + min(SPARED, policy.gate_timeout)
            self._registry.ledger.stubborn[placement.node, self._gated] = until
            self._open()
        elif self._gated is None and (victim := self._at_work(placement)) is not None:
            self._gated, self._gated_at = victim, moment
            self._gates.enter_context(self._registry.gate(placement.node, victim))
            log.info(
                "%r on %s gets no new requests: %r has waited for its place for %.0f s",
                victim,
                placement.node,
                self._model,
                moment - self._began,
            )

    def _at_work(self, placement: Placement) -> str | None:
        """Which of them to gate. One that has only just come goes by itself when its time is over,
        and one that is loading has its own turn first."""
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        for resident in residents(snapshot.nodes[placement.node], snapshot, ledger, now()):
            if (
                resident.model in placement.blockers
                and resident.busy
                and resident.kept is None
                and not resident.is_stubborn
            ):
                return resident.model
        return None

    def _open(self) -> None:
        self._gates.close()
        self._gated = None

    def _withdraw(self) -> None:
        if self.node is not None:
            self._reservations.end(self.node, self._model)
            if self._insisting.get(self.node) == self._model:
                del self._insisting[self.node]
