from __future__ import annotations

import pytest

from cortexd.config.catalogue import Profile
from cortexd.fleet.assessment import Assessment, assess, glance, infeasibility
from cortexd.fleet.snapshot import Failure, Ledger
from cortexd.wire.neuron import Discovery
from tests.fleet.fleet import fleet, full, hardware, node

NOW = 1000.0
M = Profile("m", vram_mb=9000)


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


def test_an_assessment_says_what_place_thinks_of_a_node() -> None:
    ledger = Ledger(failures={("back-off", "m"): Failure("no", NOW + 1)})
    snapshot = fleet(
        node("small", gpus=(8000,)),
        node("down", up=False),
        node("back-off", free=(12000,)),
        full("swap", "x"),
        models=(Profile("x"),),
    )

    def say(name: str) -> Assessment:
        return assess(M, snapshot.nodes[name], snapshot, ledger, NOW)

    assert "1 device of 9000 MiB or more needed" in str(say("small").infeasible)
    assert say("down").absent == "unhealthy (connection refused)"
    assert say("back-off").failure == Failure("no", NOW + 1)
    assert (say("back-off").fits, say("back-off").free) == (True, {0: 12000})
    swap = say("swap")
    assert (swap.fits, swap.free, swap.share, swap.needs) == (False, {0: 4000}, 9000, {0: 9000})
    assert (swap.devices, swap.victims, swap.crowded) == ((0,), ("x",), None)
    assert glance(M, snapshot.nodes["swap"], snapshot, ledger, NOW).victims == ()
