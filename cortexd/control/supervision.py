"""Decides by a node's reports whether a load that it was asked for is lost.

The load table acts on it.
"""

from __future__ import annotations

from typing import Final

from cortexd.control.entry import Entry
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import LOADED, LOADING, RELOADING

STALL: Final = 300.0  # seconds without progress, on a node that reports it
# Seconds after which a load that a restarted node does not list is lost though its own call is
# open: a host that lost its power ends no connection.
RESTART_GRACE: Final = 10.0

_COMING: Final = frozenset({LOADED, LOADING, RELOADING})


def loss(entry: Entry, node: Node | None, moment: float, stale_after: float) -> str | None:
    """Return why the load has failed, in words; None: it goes on, as far as is known.

    moment: loop time. stale_after: seconds between two reports that count at most: time in which a
    suspended host or gateway slept is not time without progress.
    """
    if node is None:
        return "the node was removed from the configuration"
    if node.epoch != entry.epoch and (words := _after_restart(entry, node, moment)) is not None:
        return words
    if entry.fraction is not None and _seconds_still(entry, node, stale_after) >= STALL:
        return f"it makes no progress at {entry.fraction:.0%}"
    if entry.has_ended and not node.healthy:
        return f"the node is down: {node.trouble}"
    return None


def _after_restart(entry: Entry, node: Node, moment: float) -> str | None:
    """Return why the load is lost with the process it was begun in; None: it goes on.

    It goes on if its call is open or the node still lists it.
    """
    info = node.models.get(entry.model)
    if info is not None and info.status in _COMING:
        entry.epoch, entry.restarted = node.epoch, None
        return None
    if entry.is_called:
        if entry.restarted is None:
            entry.restarted = moment
        if moment - entry.restarted < RESTART_GRACE:
            return None
    return "the node restarted in the middle of it"


def _seconds_still(entry: Entry, node: Node, stale_after: float) -> float:
    contact = node.last_contact
    if contact is not None and contact != entry.contact:
        if entry.contact is not None:
            entry.still += min(contact - entry.contact, stale_after)
        entry.contact = contact
    return entry.still
