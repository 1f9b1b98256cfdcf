"""What requests tell of the replicas that they were sent to, faster than any poll can.

It only ever makes a replica less preferred; nothing that happens here takes one out of service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cortexd.control.registry import Registry
from cortexd.fleet.snapshot import Replica
from cortexd.proxy.answer import UpstreamFault

# Statuses that say "not now": they are no fault.
BACK_PRESSURE: Final = frozenset({429, 503})
# Seconds after a request was sent within which a used connection that ends says nothing: the
# upstream may have closed it for its idleness, at the same moment.
STALE_WITHIN: Final = 1.0

_CUT: Final = frozenset({"refused", "unreachable", "own", "reset", "unauthorized"})
_BROKEN: Final = frozenset({"invalid", "timeout"})


class Liveness:
    """`nudge`: has a node polled now."""

    def __init__(self, registry: Registry, nudge: Callable[[str], None]) -> None:
        self._registry = registry
        self._nudge = nudge

    def answered(self, replica: Replica, status: int, *, is_whole: bool) -> None:
        """An answer of it was passed on, as a whole or until it broke off."""
        if not is_whole:
            self._note(replica, suspect=True)
        elif status < 400:
            self._registry.note_success(replica.node, replica.model)
        elif status >= 500 and status not in BACK_PRESSURE:
            self._note(replica, suspect=False)

    def failed(self, replica: Replica, fault: UpstreamFault) -> None:
        """It gave no answer that could be passed on."""
        if fault.what in _CUT:
            if not (fault.is_reused and fault.after <= STALE_WITHIN):
                self._note(replica, suspect=True)
        elif fault.what in _BROKEN or (fault.status >= 500 and fault.status not in BACK_PRESSURE):
            self._note(replica, suspect=False)

    def _note(self, replica: Replica, *, suspect: bool) -> None:
        # Once: what goes on failing must not have its node polled without a pause.
        if self._registry.note_fault(replica.node, replica.model, suspect=suspect):
            self._nudge(replica.node)
