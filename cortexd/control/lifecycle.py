"""The life of a load as a table: which event leads from which state to which.

One owner, `coldload`, drives it. An event that the table does not have is a mistake of ours and
raises; nothing is loaded by accident.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Where a load is. The last four are ends."""

    QUEUED = "queued"
    PLACING = "placing"
    MAKING_ROOM = "making room"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"


class Event(Enum):
    """What happens to it."""

    STARTED = "started"
    PLACED = "placed"
    NO_ROOM = "no room"
    LOADED = "loaded"
    FAULT = "fault"
    LATE = "late"
    CANCEL = "cancel"


ENDS: Final = frozenset({State.READY, State.FAILED, State.TIMED_OUT, State.CANCELLED})

TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.QUEUED, Event.STARTED): State.PLACING,
    (State.PLACING, Event.PLACED): State.LOADING,
    (State.PLACING, Event.NO_ROOM): State.MAKING_ROOM,
    (State.MAKING_ROOM, Event.PLACED): State.LOADING,
    (State.LOADING, Event.LOADED): State.READY,
} | {
    (state, event): end
    for state in State
    if state not in ENDS
    for event, end in (
        (Event.FAULT, State.FAILED),
        (Event.LATE, State.TIMED_OUT),
        (Event.CANCEL, State.CANCELLED),
    )
}


class IllegalTransition(Exception):
    """The table has no such event in that state."""


def after(state: State, event: Event) -> State:
    """The state that `event` leads to. Raises IllegalTransition, with both named."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"a load that is {state.value} can't be {event.value}") from None
