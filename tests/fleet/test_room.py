from __future__ import annotations

import pytest

from cortexd.fleet.residents import Resident
from cortexd.fleet.room import MOST_DEVICES, gains, make_room


def holds(model: str, mb: float | None, *devices: int, used: float = 0.0) -> Resident:
    return Resident("a", model, devices or (0,), mb, last_use=used)


def leave(
    share: float, left: dict[int, float], *willing: Resident, count: int = 1
) -> tuple[tuple[int, ...], str] | None:
    """The devices, and the models that leave; of nodes whose devices hold 24 MiB each."""
    given = gains(willing, left, dict.fromkeys(left, 24.0))
    room = make_room(count, share, left, given, willing)
    return None if room is None else (room.devices, "".join(one.model for one in room.leaving))


def test_the_least_recently_used_leave_first_and_no_more_than_must() -> None:
    assert leave(9, {0: 4}, holds("a", 5), holds("b", 5), holds("c", 5)) == ((0,), "a")
    assert leave(14, {0: 4}, holds("a", 5), holds("b", 5), holds("c", 5)) == ((0,), "ab")


def test_whoever_turns_out_not_to_be_needed_is_spared() -> None:
    assert leave(12, {0: 4}, holds("a", 2), holds("b", 3), holds("c", 10)) == ((0,), "c")


def test_models_on_other_devices_are_left_alone() -> None:
    left = {0: 4.0, 1: 1.0}
    assert leave(9, left, holds("a", 5, 1), holds("b", 5, 0)) == ((0,), "b")


def test_nobody_leaves_a_device_that_has_room() -> None:
    left = {0: 20.0, 1: 1.0}
    assert leave(9, left, holds("a", 4, 0), holds("b", 20, 1), count=2) == ((0, 1), "b")


def test_a_model_over_several_devices_counts_once() -> None:
    left = {0: 4.0, 1: 4.0, 2: 4.0}
    willing = (holds("a", 20, 2), holds("b", 20, 0, 1))
    assert leave(20, left, *willing, count=2) == ((0, 1), "b")


def test_the_best_devices_lose_the_fewest_models() -> None:
    left = {0: 4.0, 1: 0.0}
    willing = (holds("a", 10, 0), holds("b", 10, 0), holds("c", 20, 1))
    assert leave(20, left, *willing) == ((1,), "c")


def test_then_those_that_were_used_least_recently() -> None:
    left = {0: 4.0, 1: 3.0}
    assert leave(9, left, holds("b", 20, 1, used=1), holds("a", 20, 0, used=2)) == ((1,), "b")


def test_then_they_are_those_with_most_memory_free_and_then_the_lowest() -> None:
    willing = tuple(holds("abc"[index], 20, index) for index in range(3))
    assert leave(9, {0: 3, 1: 4, 2: 4}, *willing) == ((1,), "b")


def test_which_of_the_equally_cheap_devices_are_taken_is_for_the_memory_that_is_free() -> None:
    willing = [holds("abcd"[i], 20, i, used=used) for i, used in enumerate((9, 1, 2, 2))]
    assert leave(9, {0: 4, 1: 1, 2: 2, 3: 3}, *willing, count=2) == ((2, 3), "cd")
    willing = [holds("a", 20, 0, used=9), holds("b", 5, 1), holds("c", 5, 1), holds("d", 20, 2)]
    assert leave(9, {0: 1, 1: 3, 2: 2}, *willing, count=2) == ((0, 2), "ad")
    assert leave(9, {0: 1, 1: 3, 2: 2}, *willing, count=3) == ((0, 1, 2), "abcd")


def test_a_device_that_nobody_has_to_leave_says_nothing_about_the_latest_use() -> None:
    willing = (holds("a", 20, 1, used=-1), holds("b", 20, 2))
    assert leave(9, {0: 20, 1: 3, 2: 4}, *willing, count=2) == ((0, 1), "a")


def test_what_leaves_pays_the_debt_of_others_first() -> None:
    assert leave(9, {0: -5}, holds("a", 10)) is None
    assert leave(9, {0: -5}, holds("a", 10), holds("b", 4)) == ((0,), "ab")


def test_there_is_no_room_when_all_leaving_is_not_enough() -> None:
    assert leave(20, {0: 4}, holds("a", 10)) is None
    assert leave(10, {0: 4, 1: 0}, holds("a", 10, 0), count=2) is None
    assert leave(1, {}) is None


def test_models_of_unknown_size_hold_what_nobody_else_accounts_for() -> None:
    willing = (holds("a", None), holds("b", None), holds("c", 6))
    found = gains(willing, {0: 4.0}, {0: 24.0})
    assert found == {"a": {0: 7}, "b": {0: 7}, "c": {0: 6}}
    assert gains((holds("a", None), holds("b", 30)), {0: 4.0}, {0: 24.0})["a"] == {0: 0}


def test_of_many_devices_the_freest_that_can_be_cleared_are_tried() -> None:
    left = {index: float(index) for index in range(MOST_DEVICES + 4)}
    willing = [holds(f"m{index}", 20, index) for index in range(4)]
    assert leave(20, left, *willing) == ((3,), "m3")


@pytest.mark.parametrize("count", [1, 3, 9])
def test_nothing_on_no_devices_is_no_room(count: int) -> None:
    assert leave(9, {0: 1.0, 1: 1.0}, count=count) is None
