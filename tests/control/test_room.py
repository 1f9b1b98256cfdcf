"""Making room, on machines that have memory: who goes, who stays, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.config.units import Duration
from cortexd.fleet.snapshot import Policy
from cortexd.nodes.client import NodeError
from tests.control.household import House, Machine, live

BIG, SMALL = Profile("big", vram_mb=18000), Profile("small", vram_mb=10000)
FULL = NodeError("/models/load: 507 no", 507, "insufficient_vram")
LONG = 100.0  # seconds: past every patience and least residency


def home(
    *profiles: Profile,
    machines: tuple[Machine, ...] = (Machine("a"),),
    policy: Policy | None = None,
    timeout: float = 600,
) -> Callable[[], House]:
    return lambda: House(machines, profiles or (BIG, SMALL), policy=policy, timeout=timeout)


def tell(house: Callable[[], House], story: Callable[[House], Awaitable[None]]) -> list[str]:
    """What the machines were told to do."""

    async def to_the_end(house: House) -> None:
        await story(house)
        await asyncio.sleep(LONG)
        assert house.is_empty(), house.registry.ledger

    return live(house, to_the_end).notes


def test_an_idle_model_makes_room_for_one_that_is_asked_for() -> None:
    async def story(house: House) -> None:
        assert await house.ask("big") == "a"
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "a"

    told = tell(home(), story)
    assert told == ["load big on a", "unload big from a", "load small on a"]


def test_nothing_goes_while_another_node_has_room() -> None:
    async def story(house: House) -> None:
        assert await house.ask("big") == "a"
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "b"

    told = tell(home(machines=(Machine("a"), Machine("b", (12000,)))), story)
    assert told == ["load big on a", "load small on b"]


def test_a_model_at_work_stays_until_its_last_answer_has_ended() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        await asyncio.sleep(LONG)
        working = house.asking("big", hold=20)
        await asyncio.sleep(1)
        assert await house.ask("small") == "a"
        assert working.done()

    told = tell(home(), story)
    assert told == ["load big on a", "unload big from a", "load small on a"]


def test_a_model_that_is_always_at_work_gets_no_new_requests_after_a_while() -> None:
    order: list[str] = []

    async def story(house: House) -> None:
        async def note(model: str, hold: float) -> None:
            await house.ask(model, hold)
            order.append(model)

        await house.ask("big")
        async with asyncio.TaskGroup() as crowd:
            for _ in range(12):  # one after the other, and they overlap
                crowd.create_task(note("big", 20))
                await asyncio.sleep(10)
                if len(order) == 1:
                    crowd.create_task(note("small", 0))
        assert order.index("small") < len(order) - 2, "who came behind the gate waited for it"

    told = tell(home(), story)
    assert told[:3] == ["load big on a", "unload big from a", "load small on a"]
    assert told[3:] == ["unload small from a", "load big on a"]


def test_a_gate_that_does_not_help_is_opened_again_and_the_newcomer_waits_on() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        working = house.asking("big", hold=500)
        await asyncio.sleep(1)
        newcomer = house.asking("small")
        await asyncio.sleep(100)
        behind = house.asking("big")
        assert await behind == "a", "the gate is open again"
        assert not working.done()
        late = house.asking("small")
        assert await newcomer == await late == "a"
        assert working.done()

    told = tell(home(), story)
    assert told == ["load big on a", "unload big from a", "load small on a"]


def test_behind_a_gate_another_victim_is_found() -> None:
    machines = (Machine("a", (24000,)), Machine("b", (24000,)))
    other = Profile("other", vram_mb=18000)

    async def story(house: House) -> None:
        assert await house.ask("big") == "a"
        assert await house.ask("other") == "b"
        stubborn = house.asking("big", hold=2000)
        helpful = house.asking("other", hold=300)
        await asyncio.sleep(1)
        assert await house.ask("small") == "b"
        assert helpful.done()
        await stubborn

    told = tell(home(BIG, SMALL, other, machines=machines), story)
    assert told[2:] == ["unload other from b", "load small on b"]


def test_a_gate_stays_where_it_is_while_it_helps_whoever_works_least_just_then() -> None:
    machines = (Machine("a"), Machine("b"))
    other = Profile("other", vram_mb=18000)

    async def story(house: House) -> None:
        async def keep_busy(model: str, pause: float) -> None:
            await asyncio.sleep(pause)
            while not newcomer.done():
                await house.ask(model, hold=9)

        newcomer = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as crowd:
            for model in ("big", "other"):
                for number in range(3):
                    pause = number * 3 + (model == "big") * 1.5
                    crowd.create_task(keep_busy(model, pause))
            await asyncio.sleep(LONG)
            began = asyncio.get_running_loop().time()
            await house.ask("small")
            newcomer.set_result(None)
            assert asyncio.get_running_loop().time() - began < 30 + 9 + 10  # patience, answer, swap

    told = tell(home(BIG, SMALL, other, machines=machines), story)
    assert len(told) == 6, "one swap, and the swap back"


def test_a_model_that_was_just_loaded_answers_before_it_gets_no_new_requests() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        await asyncio.sleep(LONG)
        small = house.asking("small", hold=60)
        await asyncio.sleep(1)
        back = house.asking("big")
        await asyncio.sleep(50)  # it insists by now
        assert await house.ask("small") == "a"
        assert not small.done()
        assert not back.done()
        await asyncio.gather(small, back)

    tell(home(), story)


def test_who_stands_in_line_for_a_model_that_makes_room_waits_for_its_return() -> None:
    machine = Machine("a", slots=1)

    async def story(house: House) -> None:
        crowd = [house.asking(model, hold=2) for _ in range(60) for model in ("big", "small")]
        assert set(await asyncio.gather(*crowd)) == {"a"}

    told = tell(home(machines=(machine,)), story)
    assert 4 < len(told) < 40, "they take turns, and not after each answer"


def test_requests_that_came_past_the_gateway_count_as_work() -> None:
    machine = Machine("a")

    async def story(house: House) -> None:
        await house.ask("big")
        await asyncio.sleep(LONG)
        machine.strangers["big"] = 1
        newcomer = house.asking("small")
        await asyncio.sleep(20)
        assert not newcomer.done()
        machine.strangers.clear()
        assert await newcomer == "a"

    told = tell(home(machines=(machine,)), story)
    assert told == ["load big on a", "unload big from a", "load small on a"]


def test_who_waits_for_room_goes_back_to_a_copy_that_returns() -> None:
    machines = (Machine("a"), Machine("b"))
    other = Profile("other", vram_mb=18000)

    async def story(house: House) -> None:
        assert await house.ask("big") == "a"
        assert await house.ask("other") == "b"
        working = house.asking("other", hold=60)
        await asyncio.sleep(1)
        house.operator.drain("a")
        newcomers = [house.asking("small"), house.asking("big"), house.asking("big")]
        await asyncio.sleep(20)
        house.operator.undrain("a")
        assert await newcomers[1] == await newcomers[2] == "a"
        assert await newcomers[0] in {"a", "b"}
        await working

    told = tell(home(BIG, SMALL, other, machines=machines), story)
    assert told[:2] == ["load big on a", "load other on b"]
    assert not [note for note in told[2:] if note.startswith("load big")]


def test_a_higher_class_is_never_displaced_and_the_refusal_says_so() -> None:
    precious = Profile("precious", vram_mb=18000, residency_priority=500)

    async def story(house: House) -> None:
        await house.ask("precious")
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "no_room"

    assert tell(home(precious, SMALL), story) == ["load precious on a"]


def test_a_model_that_has_just_answered_stays_for_its_least_residency() -> None:
    async def story(house: House) -> None:
        loop = asyncio.get_running_loop()
        await house.ask("big")
        since = loop.time()
        assert await house.ask("small") == "a"
        assert loop.time() - since >= 15

    assert len(tell(home(), story)) == 3


def test_two_cold_loads_never_count_on_the_same_memory() -> None:
    machines = (Machine("a"), Machine("b"))
    first, second = Profile("first", vram_mb=14000), Profile("second", vram_mb=14000)

    async def story(house: House) -> None:
        both = await asyncio.gather(house.ask("first"), house.ask("second"))
        assert sorted(both) == ["a", "b"]

    assert len(tell(home(first, second, machines=machines), story)) == 2


def test_without_another_node_the_second_of_two_cold_loads_waits_for_the_first() -> None:
    first, second = Profile("first", vram_mb=14000), Profile("second", vram_mb=14000)

    async def story(house: House) -> None:
        assert await asyncio.gather(house.ask("first"), house.ask("second")) == ["a", "a"]

    told = tell(home(first, second), story)
    assert told == ["load first on a", "unload first from a", "load second on a"]


def test_who_makes_room_does_not_lose_it_to_another_one() -> None:
    """The one that had to go is asked for again while it goes."""

    async def story(house: House) -> None:
        await house.ask("big")
        await asyncio.sleep(LONG)
        newcomer = house.asking("small")
        await asyncio.sleep(0.2)
        back = house.asking("big")
        assert await newcomer == "a"
        assert await back == "a"

    told = tell(home(), story)
    assert told == [
        "load big on a",
        "unload big from a",
        "load small on a",
        "unload small from a",
        "load big on a",
    ]


def test_a_node_that_says_it_is_full_makes_room_and_is_asked_once_more() -> None:
    unknown = Profile("unknown")
    machine = Machine("a", sizes={"unknown": 20000})

    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)
        assert await house.ask("unknown") == "a"

    told = tell(home(SMALL, unknown, machines=(machine,)), story)
    assert told == [
        "load small on a",
        "load unknown on a",
        "out of memory: unknown on a",
        "unload small from a",
        "load unknown on a",
    ]


def test_a_load_that_failed_is_tried_on_one_other_node() -> None:
    machines = tuple(Machine(name, refuses={"big": FULL}) for name in "abc")

    async def story(house: House) -> None:
        assert await house.ask("big") == "cold_load_failed"
        assert await house.ask("big") == "cold_load_failed"

    assert len(tell(home(machines=machines), story)) == 3, "the third node's turn comes after"


def test_what_a_model_was_seen_to_take_counts_more_than_what_was_said() -> None:
    machine = Machine("a", sizes={"small": 16000})

    async def story(house: House) -> None:
        await house.ask("small")
        await asyncio.sleep(LONG)
        await house.operator.unload("small")
        await asyncio.sleep(LONG)
        other = house.asking("other")
        await asyncio.sleep(0.1)
        assert await house.ask("small") == "a"
        await other

    other = Profile("other", vram_mb=10000)
    told = tell(home(SMALL, other, machines=(machine,)), story)
    assert not any(note.startswith("out of memory") for note in told)


def test_an_operator_may_cancel_a_load_for_which_room_is_made() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        working = house.asking("big", hold=60)
        await asyncio.sleep(1)
        newcomer = house.asking("small")
        await asyncio.sleep(5)
        assert await house.operator.unload("small") == ["a"]
        assert await newcomer == "cold_load_failed"
        assert await working == "a"

    assert tell(home(), story) == ["load big on a"]


def test_who_waits_for_room_for_too_long_is_told_so() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        working = house.asking("big", hold=300)
        await asyncio.sleep(1)
        assert await house.ask("small") == "no_room"
        await working

    assert tell(home(timeout=20), story) == ["load big on a"]


def test_with_eviction_turned_off_nothing_goes() -> None:
    async def story(house: House) -> None:
        await house.ask("big")
        await asyncio.sleep(LONG)
        assert await house.ask("small") == "no_room"

    assert tell(home(policy=Policy(evicts=False)), story) == ["load big on a"]


def test_tensor_parallel_takes_its_share_of_each_device() -> None:
    pair = Profile("pair", vram_mb=40000, min_devices=2)
    machine = Machine("a", (24000, 24000, 24000))

    async def story(house: House) -> None:
        await house.ask("small")
        assert await house.ask("pair") == "a"
        assert sorted(house.hosts["a"].resident["pair"]) == [1, 2]

    assert len(tell(home(SMALL, pair, machines=(machine,)), story)) == 2


MIXED = (
    Profile("s", vram_mb=6000),
    Profile("t", vram_mb=9000),
    Profile("l", vram_mb=20000),
    Profile("w", vram_mb=30000, min_devices=2),
)
ASKS = st.lists(
    st.tuples(
        st.sampled_from("stlw"), st.sampled_from([0.0, 0.5, 5.0, 40.0, 90.0]), st.floats(0, 30)
    ),
    max_size=40,
)


LATE = st.sampled_from([0.0, 0.0, 3.0, 12.0, 40.0])


def a_day(asks: list[tuple[str, float, float]], late: float) -> None:
    """Send requests in that order: a model, the pause before it, the seconds that it takes.

    late: seconds until the machines report the memory that an unload has freed.
    """

    async def story(house: House) -> None:
        tasks = []
        for model, pause, hold in asks:
            await asyncio.sleep(pause)
            tasks.append(house.asking(model, hold))
        assert set(await asyncio.gather(*tasks)) <= {"a", "b"}
        assert not any(note.startswith("out of memory") for note in house.notes)

    machines = (
        Machine("a", (24000,), reports_late=late),
        Machine("b", (16000, 16000), reports_late=late),
    )
    tell(home(*MIXED, machines=machines), story)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ASKS, LATE)
def test_whatever_is_asked_for_fits_and_is_served(
    asks: list[tuple[str, float, float]], late: float
) -> None:
    a_day(asks, late)


@pytest.mark.soak
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ASKS, LATE)
def test_whatever_is_asked_for_fits_and_is_served_for_long(
    asks: list[tuple[str, float, float]], late: float
) -> None:
    a_day(asks, late)


def test_idle_models_go_after_their_time() -> None:
    small = Profile("small", vram_mb=10000, idle_ttl=Duration(300))

    async def story(house: House) -> None:
        await house.ask("big")
        await house.ask("small")
        await asyncio.sleep(250)
        await house.ask("small")
        await asyncio.sleep(250)
        assert "unload small from b" not in house.notes
        await asyncio.sleep(100)

    machines = (Machine("a", (20000,)), Machine("b", (20000,)))
    told = tell(home(BIG, small, machines=machines), story)
    assert told[2:] == ["unload small from b"], "the other one has no such time"
