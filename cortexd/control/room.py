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
from cortexd.fleet.residents import displaceable
from cortexd.fleet.routing import refusal

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between two looks at who is busy
SETTLE: Final = 10.0  # seconds for a node to report the memory of what it has unloaded
SPARED: Final = 60.0  # seconds for which a model that would not go is left alone


class Room:
    """Makes room for loads."""

    def __init__(self, registry: Registry, unloads: Unloads, reservations: Reservations) -> None:
        self._registry = registry
        self._unloads = unloads
        self._reservations = reservations

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
        for. Raises Refusal when there will be no room.
        """
        model, claimed = profile.id, placement.node
        with ExitStack() as gates:
            gate = _Gate(self._registry, gates, model)
            try:
                while placement.victims or placement.blockers:
                    if claimed != placement.node:
                        self._reservations.end(claimed, model)
                        claimed = placement.node
                        moved(claimed)
                    self._reservations.claim(claimed, model, placement.needs)
                    if placement.blockers:
                        if (stubborn := gate.look(placement)) is not None:
                            self._spare(placement.node, stubborn)
                        await self._wait_a_moment()
                    else:
                        await self._unload(placement, model)
                    placement = self._place(profile, unasked=unasked)
            finally:
                self._reservations.end(claimed, model)
            if claimed != placement.node:
                moved(placement.node)
            self._reservations.begin(placement.node, model, placement.needs)
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

    def _place(self, profile: Profile, *, unasked: bool) -> Placement:
        snapshot, ledger, moment = self._registry.snapshot, self._registry.ledger, now()
        for key in [key for key, until in ledger.spared.items() if until <= moment]:
            del ledger.spared[key]
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


class _Gate:
    """Before one of the busy models that stand in the way of `model`: closed after a while, and
    opened again when that does not help either."""

    def __init__(self, registry: Registry, gates: ExitStack, model: str) -> None:
        self._registry = registry
        self._gates = gates
        self._model = model
        self._since = now()
        self._before: tuple[str, str] | None = None

    def look(self, placement: Placement) -> str | None:
        """Close or open it; who did not become idle behind it, when it is opened for that."""
        policy, moment = self._registry.snapshot.policy, now()
        if self._before is not None and (
            self._before[0] != placement.node or self._before[1] not in placement.blockers
        ):
            self._open(moment)  # it is not in the way any more
        if self._before is None and moment - self._since >= policy.patience:
            self._before, self._since = (placement.node, placement.blockers[0]), moment
            self._gates.enter_context(self._registry.gate(*self._before))
            log.info(
                "%r on %s gets no new requests: %r has waited for its place for %g s",
                placement.blockers[0],
                placement.node,
                self._model,
                policy.patience,
            )
        elif self._before is not None and moment - self._since >= policy.gate_timeout:
            stubborn = self._before[1]
            log.warning(
                "%r on %s still works after %g s without new requests; another one goes for %r",
                stubborn,
                placement.node,
                policy.gate_timeout,
                self._model,
            )
            self._open(moment - policy.patience)  # another one's turn, at once
            return stubborn
        return None

    def _open(self, since: float) -> None:
        self._gates.close()
        self._before, self._since = None, since
