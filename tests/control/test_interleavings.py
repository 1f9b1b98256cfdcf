"""In whatever order things happen: nobody waits for ever, one load at a time, nothing is left."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from tests.control.steps import (
    Answer,
    Ask,
    Cancel,
    Close,
    Leave,
    Operate,
    Pass,
    Poll,
    Serves,
    Setting,
    Step,
    Turn,
)
from tests.control.world import play

# Of the two large ones a node holds one at a time.
PROFILES = (
    Profile("m", vram_mb=14000),
    Profile("n", vram_mb=14000, pinned_on=("b", "a"), residency_priority=100),
)
MODELS = st.sampled_from(["m", "m", "n", "stray"])  # a stray one is in no catalogue
LISTED = st.sampled_from([profile.id for profile in PROFILES])
NODES = st.sampled_from(["a", "b"])
STATUS = st.sampled_from(
    ["loaded", "loaded", "unloaded", "loading", "reloading", "recovering", "failed"]
)
WHICH = st.integers(0, 5)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Thousands of fleets have a lot to say."""
    logger = logging.getLogger("cortexd.control")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


ASKS = st.builds(
    Ask, MODELS, hold=st.sampled_from([0, 0.2, 3, 60]), busy=st.booleans(), served=st.booleans()
)
POLLS = st.builds(
    Poll,
    NODES,
    status=st.dictionaries(MODELS, STATUS, max_size=3).map(lambda known: tuple(known.items())),
    fraction=st.sampled_from([None, 0.1, 0.2]),
    age=st.sampled_from([0, 0, 0.3, 3]),
    fails=st.sampled_from([False] * 4 + [True]),
    restarted=st.sampled_from([False] * 5 + [True]),
    servable=st.sampled_from([True] * 5 + [False]),
)
EVENTS: st.SearchStrategy[Step] = st.one_of(
    ASKS,
    ASKS,
    st.builds(Leave, WHICH),
    st.builds(
        Answer, WHICH, st.sampled_from(["loaded", "loaded", "loading", "loading", 400, 500, "lost"])
    ),
    POLLS,
    POLLS,
    st.builds(Serves, NODES, st.sampled_from([200, 200, 404, 500]), st.sampled_from([0, 0.1, 2])),
    st.builds(Operate, LISTED, NODES),
    st.builds(Cancel, LISTED),
    st.just(Close()),
)
PAUSES: st.SearchStrategy[Step | None] = st.sampled_from(
    [None, None, Turn(1), Turn(2), Turn(3), Turn(5)]
    + [Pass(seconds) for seconds in (0, 0, 0, 0.1, 0.6, 0.6, 16, 45, 301)]
)
# More of them than a node takes at once: who is left over waits for a turn.
CROWD = st.one_of(
    st.just([]),
    st.lists(ASKS, min_size=2, max_size=6).map(
        lambda asks: [*asks, Pass(), Answer(0), Answer(1), Turn(4)]
    ),
)
STEPS = st.tuples(CROWD, st.lists(st.tuples(EVENTS, PAUSES), max_size=40)).map(
    lambda both: both[0] + [step for pair in both[1] for step in pair if step is not None]
)
TAKES = st.sampled_from([None, (1, 0), (1, 1), (2, 1)])
SETTINGS = st.builds(
    Setting,
    profiles=st.just(PROFILES),
    takes=st.tuples(TAKES, TAKES).map(lambda takes: (("a", takes[0]), ("b", takes[1]))),
    timeout=st.sampled_from([5, 40, 40, 320]),
    max_waiting=st.sampled_from([1, 3, 1000]),
    polled=st.sampled_from([True, True, True, False]),
)
common = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes minutes
)


@settings(common, max_examples=300, derandomize=True)  # chance is for the soak
@given(SETTINGS, STEPS)
def test_every_wait_ends_and_nothing_is_left(setting: Setting, steps: list[Step]) -> None:
    play(*steps, setting=setting)


@pytest.mark.soak
@settings(common, max_examples=20_000)
@given(SETTINGS, STEPS)
def test_every_wait_ends_and_nothing_is_left_for_long(setting: Setting, steps: list[Step]) -> None:
    play(*steps, setting=setting)


def test_a_quiet_world_has_nothing_to_complain_of() -> None:
    world = play(Ask("m"), Pass(), Answer(), Pass(), Ask("m", hold=3), Pass(1))
    assert world.ended == ["served by a", "served by a"]


def test_who_comes_while_the_gateway_closes_is_told_so_and_loads_nothing() -> None:
    world = play(Close(), Ask("m"), Pass(), Operate("m", "a"), Pass())
    assert world.ended == ["shutting_down", "shutting_down"]
    assert not world.loads


def test_who_decides_again_while_the_gateway_closes_begins_no_other_wait() -> None:
    world = play(Ask("m"), Pass(), Answer(how=500), Turn(2), Close(), Pass())
    assert world.ended == ["shutting_down"]
    assert world.loads == {("a", "m"): 1}


def test_an_operator_joins_a_load_that_is_past_its_bound() -> None:
    world = play(Ask("m"), Pass(41), Operate("m", "a"), Pass(), Answer(), Pass())
    assert world.ended == ["model_loading", "operated"]
    assert world.loads == {("a", "m"): 1}


def test_who_watches_a_late_load_decides_again_as_soon_as_it_has_failed() -> None:
    setting = Setting(takes=(("a", None),))
    world = play(Ask("m"), Pass(41), Ask("m"), Pass(), Answer(how=500), Pass(), setting=setting)
    assert world.ended == ["model_loading", "cold_load_failed"]


def test_nothing_is_loaded_where_a_cancelled_load_is_still_unloaded() -> None:
    world = play(
        Ask("m"), Serves("a", takes=2), Pass(), Cancel("m"), Turn(2), Ask("m"), Pass(3), Answer()
    )
    assert world.ended == ["cold_load_failed", "cancelled", "served by a"]
    assert world.loads == {("a", "m"): 2}


def test_nothing_is_loaded_where_a_load_of_somebody_else_is_still_unloaded() -> None:
    world = play(
        Serves("a", takes=2),
        Poll("a", (("m", "loading"),)),
        Ask("m"),
        Cancel("m"),
        Turn(1),
        Poll("a", ()),
        Pass(3),
        Answer(),
    )
    assert world.ended == ["cancelled", "served by a"]
    assert world.loads == {("a", "m"): 1}


def test_nobody_is_sent_where_a_loaded_model_is_being_unloaded() -> None:
    setting = Setting(takes=(("a", None),))
    there = (Poll("a", (("m", "loaded"),)), Serves("a", takes=2))
    world = play(*there, Cancel("m"), Turn(2), Ask("m"), Pass(3), Answer(), setting=setting)
    assert world.ended == ["cancelled", "served by a"]


def test_who_waits_for_an_unload_that_is_refused_is_served_as_if_nothing_had_been() -> None:
    setting = Setting(takes=(("a", None),))
    there = (Poll("a", (("m", "loaded"),)), Serves("a", status=500, takes=2))
    asked = (Cancel("m"), Turn(2), Ask("m"), Pass(3), Serves("a"), Pass(3))
    world = play(*there, *asked, setting=setting)
    assert world.ended == ["not cancelled", "served by a"]
    assert not world.loads


def test_two_operators_who_cancel_a_load_unload_it_once() -> None:
    world = play(
        Ask("m"),
        Poll("a", (("m", "loading"),)),
        Serves("a", takes=0.1),
        Ask("m"),
        Ask("m"),
        Cancel("m"),
        Pass(),
        Cancel("m"),
        setting=Setting(timeout=5, max_waiting=1),
    )
    assert world.ended.count("cancelled") == 2


def test_a_load_past_its_bound_that_still_moves_is_not_given_up() -> None:
    moves = [
        step
        for percent in range(1, 8)
        for step in (Poll("a", (("m", "loading"),), fraction=percent / 10), Pass(100))
    ]
    world = play(Ask("m"), Pass(), *moves, Ask("m"), Pass(), Answer(), Pass())
    assert world.ended == ["model_loading", "served by a"]
    assert world.loads == {("a", "m"): 1}


ONE_AT_A_TIME = Setting(takes=(("a", (1, 0)), ("b", (1, 0))))


def test_who_waits_for_a_turn_at_a_node_that_goes_down_goes_elsewhere_at_once() -> None:
    crowd = (Ask("m", hold=3), Ask("m", hold=3), Pass(), Answer(), Pass(1))
    moved = (Poll("b", (("m", "loaded"),)), Poll("a", fails=True), Pass(2.5))
    world = play(*crowd, *moved, setting=ONE_AT_A_TIME)
    assert world.ended == ["served by a", "served by b"]


def test_no_turn_is_given_where_the_model_has_gone_meanwhile() -> None:
    crowd = (Ask("m", hold=0.2), Ask("m"), Pass(), Answer(), Pass(0.1))
    world = play(*crowd, Poll("a", ()), Pass(0.1), Answer(), Pass(), setting=ONE_AT_A_TIME)
    assert world.ended == ["served by a", "served by a"]
    assert world.loads == {("a", "m"): 2}


def test_who_waits_for_a_turn_is_not_forgotten_when_the_model_is_loaded_anew() -> None:
    crowd = (Ask("m", hold=60), Ask("m"), Pass(), Answer(), Pass())
    anew = (Poll("a", ()), Ask("m"), Turn(5), Answer(), Pass())
    world = play(*crowd, *anew, setting=Setting(takes=(("a", (1, 0)),), timeout=100))
    assert world.ended == ["served by a"] * 3


def test_those_whom_a_node_turned_away_keep_the_order_in_which_they_came() -> None:
    first, second = Ask("m", hold=0.1, busy=True), Ask("m", hold=0.2, busy=True)
    crowd = (first, Pass(0.01), second, Pass(), Answer(), Pass(0.05))
    busy = (Ask("m", hold=9), Ask("m", hold=9), Pass(0.3))
    world = play(*crowd, *busy, Pass(), setting=Setting(takes=(("a", (2, 0)),)))
    assert world.ended == ["served by a"] * 2 + ["served by a at last"] * 2


def test_whoever_a_node_turned_away_is_served_before_those_who_came_later() -> None:
    crowd = (Ask("m", hold=0.1, busy=True), Pass(), Answer(), Pass(0.2))
    world = play(*crowd, Ask("m"), Ask("m"), Pass(), setting=ONE_AT_A_TIME)
    assert world.ended == ["served by a at last", "served by a", "served by a"]


def test_the_bound_counts_from_the_arrival_for_those_whom_a_node_turns_away() -> None:
    world = play(Ask("m", hold=60, busy=True), Pass(), Answer(), Pass(61), Ask("m"))
    assert world.ended == ["model_loading", "served by a"]


def test_a_client_that_leaves_takes_nobodys_turn() -> None:
    crowd = (Ask("m", hold=9), Ask("m"), Ask("m"), Pass(), Answer(), Pass(2.7))
    # It goes in the very turn of the loop in which the first one ends.
    world = play(*crowd, Leave(0), Leave(1), Turn(5), Close(), setting=ONE_AT_A_TIME)
    assert world.ended == ["left", "left", "served by a"]


def test_a_load_whose_answer_is_lost_is_over_when_its_node_lists_the_model() -> None:
    world = play(Ask("m"), Pass(), Poll("a", (("m", "loaded"),)), Pass(1), Close())
    assert world.ended == ["served by a"]


@pytest.mark.parametrize("turns", range(8))
def test_a_client_that_leaves_around_the_moment_of_its_turn_leaves_no_claim(turns: int) -> None:
    world = play(Ask("m", hold=3), Pass(), Answer(), Turn(turns), Leave(), Pass())
    assert world.ended == ["left"]
