from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.fleet.placement import NoPlacement, Placement, infeasibility, load_request, place
from cortexd.fleet.snapshot import Ledger
from cortexd.wire.neuron import DeviceInfo, Discovery
from tests.fleet.fleet import fleet, hardware, node


@pytest.mark.parametrize(
    ("profile", "gpus", "fits"),
    [
        (Profile("m"), (8,), True),
        (Profile("m"), (), False),
        (Profile("m", min_devices=2), (8,), False),
        (Profile("m", min_devices=2), (8, 8), True),
        (Profile("m", min_device_vram_mb=9), (8, 8), False),
        (Profile("m", min_device_vram_mb=8), (8,), True),
        (Profile("m", min_devices=2, min_device_vram_mb=9), (8, 10, 10), True),
        (Profile("m", min_devices=2, min_device_vram_mb=9), (8, 8, 10), False),
        (Profile("m", vram_mb=16), (8, 8), False),
        (Profile("m", vram_mb=16, min_devices=2), (8, 8), True),
        (Profile("m", vram_mb=17, min_devices=2), (8, 8), False),
    ],
)
def test_feasibility_counts_devices_over_the_floor(
    profile: Profile, gpus: tuple[int, ...], fits: bool
) -> None:
    assert (infeasibility(profile, node("a", gpus=gpus)) is None) is fits


@pytest.mark.parametrize(
    ("profile", "described", "words"),
    [
        (Profile("m", pinned_on=("b",)), hardware(8), "not in pinned_on"),
        (Profile("m"), hardware(8, cuda_unavailable_reason="driver too old"), "driver too old"),
        (Profile("m", harness="vllm"), hardware(8, harnesses=["llamacpp"]), "only llamacpp"),
        (Profile("m", min_devices=2), hardware(8), "2 devices of 0 MiB or more needed, it has 1"),
    ],
)
def test_an_infeasible_node_says_why(profile: Profile, described: Discovery, words: str) -> None:
    reason = infeasibility(profile, node("a", discovery=described))
    assert reason is not None
    assert words in reason


def test_a_node_that_names_no_harnesses_may_have_any() -> None:
    assert infeasibility(Profile("m", harness="vllm"), node("a")) is None


def test_pinned_nodes_come_in_their_order_then_by_name() -> None:
    def chosen(profile: Profile, *down: str) -> str | None:
        nodes = [node(name, up=name not in down) for name in "cab"]
        placed = place(profile, fleet(*nodes), Ledger(), 0.0)
        return placed.node if isinstance(placed, Placement) else None

    assert chosen(Profile("m")) == "a"
    assert chosen(Profile("m", pinned_on=("c", "b"))) == "c"
    assert chosen(Profile("m", pinned_on=("c", "b")), "c") == "b"
    assert chosen(Profile("m", pinned_on=("c", "b")), "c", "b") is None


def test_no_placement_sorts_the_nodes_by_what_stands_in_the_way() -> None:
    snapshot = fleet(node("small", gpus=(4,)), node("down", up=False), node("new", gpus=None))
    placed = place(Profile("m", min_device_vram_mb=8), snapshot, Ledger(), 0.0)
    assert isinstance(placed, NoPlacement)
    assert set(placed.infeasible) == {"small"}
    assert placed.asleep == {
        "down": "unhealthy (connection refused)",
        "new": "not described yet",
    }


def test_a_spec_names_the_first_fitting_devices_ascending() -> None:
    described = Discovery(
        [DeviceInfo(2, 24), DeviceInfo(0, 8), DeviceInfo(1, 24), DeviceInfo(3, 24)]
    )
    spec = load_request(Profile("m", min_devices=2, min_device_vram_mb=16), described)
    assert spec.devices == [1, 2]
    assert spec.tensor_parallel == 2


def test_a_spec_carries_the_profile_over() -> None:
    spec = load_request(Profile("a/b", source="hf", quant="Q4_K_M", harness="h"), hardware(8))
    assert (spec.model_id, spec.quant, spec.harness) == ("hf:a/b", "Q4_K_M", "h")
    assert (spec.devices, spec.tensor_parallel) == ([0], None)


@given(
    st.integers(1, 16),
    st.integers(0, 100_000),
    st.none() | st.lists(st.tuples(st.integers(0, 99), st.integers(0, 100_000)), max_size=16),
)
def test_a_spec_always_names_as_many_devices_as_asked_for(
    count: int, floor: int, devices: list[tuple[int, int]] | None
) -> None:
    described = None if devices is None else Discovery([DeviceInfo(i, vram) for i, vram in devices])
    spec = load_request(Profile("m", min_devices=count, min_device_vram_mb=floor), described)
    assert spec.devices is not None
    assert len(spec.devices) == count
    assert spec.devices == sorted(spec.devices)
    if not described:
        assert spec.devices == list(range(count))
