from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.fleet.memory import before, footprint, free, headroom, totals
from cortexd.fleet.snapshot import FootprintKey, Ledger, Node, Promise
from cortexd.wire.neuron import DeviceHealth, DeviceInfo, Discovery, Model
from tests.fleet.fleet import fleet, hardware, held, node

M = Profile("m", vram_mb=9000)


def left(one: Node, *models: Profile, besides: str | None = None, **ledger: object) -> list[float]:
    known = Ledger(**ledger)  # type: ignore[arg-type]
    return list(free(one, fleet(one, models=models), known, besides=besides).values())


def gauged(*gauges: DeviceHealth, total: int = 24000) -> Node:
    return node("a", gpus=(total,), gauges=list(gauges))


@pytest.mark.parametrize(
    ("gauge", "mb"),
    [
        (DeviceHealth(0, vram_free_mb=5000, vram_used_mb=1), 5000),
        (DeviceHealth(0, vram_used_mb=20000), 4000),
        (DeviceHealth(0), 24000),
        (DeviceHealth(1, vram_free_mb=5000), 24000),
    ],
)
def test_free_is_what_the_node_reports_else_what_is_not_used(gauge: DeviceHealth, mb: int) -> None:
    assert left(gauged(gauge)) == [mb]


def test_where_the_node_reports_nothing_its_models_are_taken_off() -> None:
    one = node(
        "a",
        {"x": held(8000, 0, 1), "y": held(None, 1), "z": held(5000, status="unloaded")},
        gpus=(24000, 24000, 24000),
        free=(1000,),
    )
    assert left(one) == [1000, 20000, 24000]
    assert left(one, Profile("y", vram_mb=6000)) == [1000, 14000, 24000]


@pytest.mark.parametrize("mb", [-1, 10**400, float("nan"), float("inf"), float("-inf")])
def test_nonsense_counts_as_not_reported(mb: float) -> None:
    assert left(gauged(DeviceHealth(0, vram_free_mb=mb, vram_used_mb=20000))) == [4000]
    assert left(gauged(DeviceHealth(0, vram_free_mb=mb, vram_used_mb=mb))) == [24000]
    assert left(node("a", discovery=Discovery([DeviceInfo(0, mb)]))) == []
    assert left(node("a", {"x": held(mb)})) == [24000]


def test_no_device_has_more_free_than_it_has() -> None:
    assert left(gauged(DeviceHealth(0, vram_free_mb=30000))) == [24000]


def test_a_half_finished_load_is_not_counted_twice() -> None:
    promise = {("a", "m"): Promise({0: 9000}, before={0: 20000})}
    assert left(node("a", free=(20000,)), promises=promise) == [11000]
    assert left(node("a", free=(15000,)), promises=promise) == [11000]
    assert left(node("a", free=(9500,)), promises=promise) == [9500]


def test_two_cold_loads_never_count_on_the_same_gigabytes() -> None:
    one, ledger = node("a", free=(20000,)), Ledger()
    for model in ("m", "n"):
        found = before(one, fleet(one), ledger)
        ledger.promises["a", model] = Promise({0: 9000}, before=found)
    assert free(one, fleet(one), ledger) == {0: 2000}


def test_memory_that_is_still_being_made_room_for_is_taken() -> None:
    one = node("a", free=(5000,))
    ledger = Ledger(promises={("a", "m"): Promise({0: 9000}), ("b", "n"): Promise({0: 9000})})
    assert free(one, fleet(one), ledger) == {0: 0}
    assert headroom(one, fleet(one), ledger) == {0: -4000}
    assert before(one, fleet(one), ledger) == {0: 5000}


def test_a_models_own_promise_does_not_stand_in_its_way() -> None:
    for promise in (Promise({0: 9000}), Promise({0: 9000}, before={0: 9000})):
        assert left(node("a"), besides="m", promises={("a", "m"): promise}) == [24000]


def test_what_is_reserved_is_left_alone() -> None:
    assert left(node("a", free=(20000,), reserve_mb=2000)) == [18000]
    assert left(node("a", free=(1000,), reserve_mb=2000)) == [0]


def test_a_promise_over_unknown_devices_changes_nothing() -> None:
    assert left(node("a"), promises={("a", "m"): Promise({7: 9000}, before={7: 9000})}) == [24000]


def test_a_footprint_is_what_was_measured_else_what_the_profile_says() -> None:
    one, key = node("a"), FootprintKey("m", "llamacpp", None, 1, "a")
    assert footprint(M, one, Ledger(footprints={key: 8100.0})) == 8100
    assert footprint(M, one, Ledger()) == 9000
    assert footprint(Profile("m"), one, Ledger()) is None
    assert footprint(Profile("m", vram_mb=0), one, Ledger()) is None


@pytest.mark.parametrize("mb", [0.0, -5.0, float("nan"), 1e30])
def test_nothing_and_nonsense_are_no_measurement(mb: float) -> None:
    key = FootprintKey("m", "llamacpp", None, 1, "a")
    assert footprint(M, node("a"), Ledger(footprints={key: mb})) == 9000


@pytest.mark.parametrize(
    "other",
    [
        Profile("m", quant="Q4", vram_mb=9000),
        Profile("m", harness="vllm", vram_mb=9000),
        Profile("m", min_devices=2, vram_mb=9000),
        Profile("n", vram_mb=9000),
    ],
)
def test_a_measurement_is_of_one_way_to_load_one_model(other: Profile) -> None:
    key = FootprintKey("m", "llamacpp", None, 1, "a")
    assert footprint(other, node("a"), Ledger(footprints={key: 8100.0})) == 9000


# Anything that JSON, and arithmetic on it, can bring.
AMOUNTS = st.floats() | st.integers(-(10**400), 10**400)
INDICES = st.integers(-1, 3)
GAUGES = st.builds(
    DeviceHealth, INDICES, vram_used_mb=st.none() | AMOUNTS, vram_free_mb=st.none() | AMOUNTS
)
MODELS = st.builds(
    Model,
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["loaded", "loading", "unloaded"]),
    devices=st.none() | st.lists(INDICES, max_size=3),
    vram_used_mb=st.none() | AMOUNTS,
)
OURS = st.dictionaries(INDICES, st.floats(0, 1e6), max_size=2)
PROMISES = st.builds(Promise, OURS, st.none() | OURS)


@given(
    st.lists(st.builds(DeviceInfo, INDICES, AMOUNTS), max_size=4),
    st.lists(GAUGES, max_size=4),
    st.lists(MODELS, max_size=3),
    st.dictionaries(st.tuples(st.just("a"), st.sampled_from(["x", "n"])), PROMISES, max_size=2),
)
def test_whatever_a_node_reports_no_more_is_free_than_its_devices_hold(
    devices: list[DeviceInfo],
    gauges: list[DeviceHealth],
    models: list[Model],
    promises: dict[tuple[str, str], Promise],
) -> None:
    listed: dict[str, str | Model] = {model.id: model for model in models}
    one = node("a", listed, discovery=Discovery(devices), gauges=gauges)
    found = free(one, fleet(one), Ledger(promises=promises))
    there = totals(one.hardware)
    assert found.keys() == there.keys() <= {device.index for device in devices}
    assert all(0 <= found[index] <= there[index] for index in found)


def test_a_node_that_was_never_described_has_nothing() -> None:
    assert left(node("a", gpus=None)) == []
    assert totals(hardware()) == {}
