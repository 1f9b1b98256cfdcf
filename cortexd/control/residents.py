"""What is resident without being asked for: copies that are kept, and models that nobody wants.

Looks at the whole fleet now and then. Loads go through the table like everybody's, unloads through
`unloads`; nothing here makes anybody wait.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from cortexd.config.catalogue import Profile
from cortexd.control.coldload import LoadTable
from cortexd.control.registry import Registry
from cortexd.control.turns import now
from cortexd.control.unloads import Unloads
from cortexd.daemon.tasks import Tasks
from cortexd.fleet.memory import RESIDENT
from cortexd.fleet.placement import Placement, place
from cortexd.fleet.residents import idle_ttl, residents
from cortexd.fleet.routing import Load
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import LOADED

log = logging.getLogger(__name__)

LOOK: Final = 1.0  # seconds between two looks


class Residents:
    """Keeps the copies that the catalogue asks for, and lets go of what has been idle too long."""

    def __init__(self, registry: Registry, table: LoadTable, unloads: Unloads) -> None:
        self._registry = registry
        self._table = table
        self._unloads = unloads
        self._tasks = Tasks()
        self._since: dict[tuple[str, str], float] = {}  # when it was first seen loaded there

    def start(self) -> None:
        """Begin to look."""
        self._tasks.spawn("residents", self._keep_looking())

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if self._registry.snapshot.settled:
                self.look()

    def look(self) -> None:
        """Begin what is due; it goes on by itself."""
        snapshot = self._registry.snapshot
        for profile in snapshot.catalogue.profiles.values():
            if profile.copies:
                self._keep_copies(profile)
        there: set[tuple[str, str]] = set()
        for node in snapshot.nodes.values():
            there.update(self._let_go(node))
        self._since = {key: since for key, since in self._since.items() if key in there}

    def _keep_copies(self, profile: Profile) -> None:
        snapshot, ledger, model = self._registry.snapshot, self._registry.ledger, profile.id
        if model in ledger.loading or model in ledger.gates or self._table.entry(model):
            return
        replicas = snapshot.replicas.get(model, ())
        copies = [
            replica.node
            for replica in replicas
            if replica.status in RESIDENT and snapshot.nodes[replica.node].is_available
        ]
        if len(copies) >= profile.copies:
            return
        known = [replica.node for replica in replicas if replica.status in RESIDENT]
        placed = place(profile, snapshot, ledger, now(), avoid=known, unasked=True)
        if isinstance(placed, Placement) and not placed.blockers:
            log.info(
                "%d of %d copies of %r are there; one more goes to %s",
                len(copies),
                profile.copies,
                model,
                placed.node,
            )
            self._table.join(Load(model, placed), unasked=True)

    def _let_go(self, node: Node) -> set[tuple[str, str]]:
        """Unload what has been idle there for too long; all that is loaded there."""
        snapshot, ledger, moment = self._registry.snapshot, self._registry.ledger, now()
        loaded = {(node.name, name) for name, info in node.models.items() if info.status == LOADED}
        for key in loaded:
            self._since.setdefault(key, moment)
        due = {key for key in loaded if self._is_due(key, moment)}
        if due and node.is_available:
            for resident in residents(node, snapshot, ledger, moment):
                key = (node.name, resident.model)
                if key in due and resident.is_idle:
                    idle = moment - self._idle_since(key)
                    words = f"nobody has asked for it for {idle:.0f} s"
                    work = self._unloads.unload(node.name, resident.model, "idle", words)
                    self._tasks.spawn(f"let go of {resident.model} on {node.name}", work)
        return loaded

    def _is_due(self, key: tuple[str, str], moment: float) -> bool:
        snapshot = self._registry.snapshot
        profile = snapshot.catalogue.profiles.get(key[1])
        if profile is not None and profile.copies:  # it would be loaded again at once
            return False
        ttl = idle_ttl(profile, snapshot)
        return ttl is not None and moment - self._idle_since(key) >= ttl

    def _idle_since(self, key: tuple[str, str]) -> float:
        return max(self._since[key], self._registry.ledger.last_access.get(key, 0.0))
