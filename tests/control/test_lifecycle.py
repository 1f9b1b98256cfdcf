from __future__ import annotations

from itertools import product

import pytest

from cortexd.control.lifecycle import ENDS, TABLE, Event, IllegalTransition, State, after

FORWARD = {
    (State.QUEUED, Event.STARTED): State.PLACING,
    (State.PLACING, Event.PLACED): State.LOADING,
    (State.PLACING, Event.NO_ROOM): State.MAKING_ROOM,
    (State.MAKING_ROOM, Event.PLACED): State.LOADING,
    (State.LOADING, Event.LOADED): State.READY,
}
ENDINGS = {
    Event.FAULT: State.FAILED,
    Event.LATE: State.TIMED_OUT,
    Event.CANCEL: State.CANCELLED,
}


@pytest.mark.parametrize(
    ("state", "event"),
    [*product(State, Event)],
    ids=lambda value: value.value.replace(" ", "-"),
)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    if state not in ENDS and event in ENDINGS:
        assert after(state, event) is ENDINGS[event]
    elif (state, event) in FORWARD:
        assert after(state, event) is FORWARD[state, event]
    else:
        with pytest.raises(IllegalTransition) as raised:
            after(state, event)
        assert state.value in str(raised.value)
        assert event.value in str(raised.value)


def test_nothing_follows_an_end() -> None:
    assert {State.READY, State.FAILED, State.TIMED_OUT, State.CANCELLED} == ENDS
    assert not [state for state, _ in TABLE if state in ENDS]


def test_every_state_is_reached_and_every_load_can_end_well() -> None:
    reached, edge = {State.QUEUED}, {State.QUEUED}
    while edge:
        edge = {end for (state, _), end in TABLE.items() if state in edge} - reached
        reached |= edge
    assert reached == set(State)
    for state in set(State) - ENDS:
        here = {state}
        for _ in State:
            here |= {end for (begun, _), end in FORWARD.items() if begun in here}
        assert State.READY in here
