from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.fleet.anomalies import MAX_DEVICES, MAX_ID, MAX_MEMORY, MAX_MODELS
from cortexd.fleet.observe import Observation
from cortexd.fleet.sanity import STANDS_FOR, in_words, sane, standing
from cortexd.fleet.snapshot import Nonsense
from cortexd.gateway.intake import MAX_MODEL_NAME
from cortexd.wire.neuron import (
    MAX_LOADABLE,
    Activation,
    Cost,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    FailedActivation,
    Health,
    Limit,
    Loadable,
    Model,
    ModelLoad,
    Progress,
    Servable,
)
from tests.fleet import nasty
from tests.fleet.fleet import hardware

GPUS = hardware(24000, 24000)
NAN = float("nan")


def seen(
    *models: Model, health: Health | None = None, discovery: Discovery | None = None
) -> Observation:
    return Observation(10.0, 10.1, models=list(models), health=health, discovery=discovery)


GOOD = seen(
    Model(
        "org/one",
        "loaded",
        harness="llamacpp",
        devices=[0, 1],
        vram_used_mb=47000.5,
        capabilities=["text"],
        limit=Limit(16384, 14336, 4096),
        cost=Cost(0.1, 0),
        tool_call=True,
        servable=Servable(ok=True),
        progress=Progress("weights", 1),
    ),
    Model("模型 (two)", "unloaded", vram_used_mb=0),
    health=Health(
        uptime_secs=4211,
        devices=[DeviceHealth(1, 20100, 12507, 100, 63), DeviceHealth(0, 0, 24000, 0, -5)],
        activation=Activation("ready", [], None, ["org/one"], [FailedActivation("c/d", "why")]),
        models=[ModelLoad("org/one", 1, 3, 8, 8, 0, 0, 812.5, 54.1)],
    ),
    discovery=Discovery(
        [DeviceInfo(0, 24000, "GPU"), DeviceInfo(1, 24000.0)],
        hostname="beast",
        harnesses=["llamacpp"],
        cuda_unavailable_reason=None,
        max_prompt_tokens=0,
    ),
)


def test_a_good_report_passes_as_it_is() -> None:
    better, complaints = sane(GOOD, None)
    assert better is GOOD
    assert not complaints


def test_an_idle_report_of_nothing_passes_as_it_is() -> None:
    nothing = seen(health=Health(), discovery=Discovery([]))
    assert sane(nothing, None) == (nothing, {})


# What is reported, what is left of it, and what the operator is told.
MODELS: list[tuple[Model, Model | None, str]] = [
    (Model("", "loaded"), None, "/models: an id that is empty"),
    (Model("x" * 10_000, "loaded"), None, "over 512 characters"),
    (Model("a\x1b[31m", "loaded"), None, "not printable"),
    (Model("a\u202eb", "loaded"), None, "not printable"),
    (Model("m", "loaded", vram_used_mb=-1), Model("m", "loaded"), "vram_used_mb can't be true"),
    (Model("m", "loaded", vram_used_mb=NAN), Model("m", "loaded"), "vram_used_mb can't be true"),
    (Model("m", "loaded", vram_used_mb=1e12), Model("m", "loaded"), "vram_used_mb can't be true"),
    (
        Model("m", "loaded", vram_used_mb=30000, devices=[0]),
        Model("m", "loaded", devices=[0]),
        "vram_used_mb is more than its devices have ('m')",
    ),
    (
        Model("m", "loaded", vram_used_mb=60000),
        Model("m", "loaded"),
        "vram_used_mb is more than its devices have ('m')",
    ),
    (
        Model("m", "loaded", devices=[1, 7, 1, -1]),
        Model("m", "loaded", devices=[1]),
        "devices that it can't have, or twice ('m')",
    ),
    (Model("m", "loaded", devices=[9]), Model("m", "loaded"), "devices that it can't have"),
    (
        Model("m", "loading", progress=Progress("weights", 42)),
        Model("m", "loading", progress=Progress("weights")),
        "/models: progress: fraction can't be true ('m')",
    ),
    (
        Model("m", "loaded", limit=Limit(10**30, 8, -1)),
        Model("m", "loaded", limit=Limit(input=8)),
        "/models: limit: context can't be true ('m')",
    ),
    (
        Model("m", "loaded", cost=Cost(-1, float("inf"))),
        Model("m", "loaded", cost=Cost()),
        "/models: cost: input can't be true ('m')",
    ),
    (
        Model("m", "loaded", capabilities=["text", "", "te\x00xt"]),
        Model("m", "loaded", capabilities=["text"]),
        "/models: capabilities holds words",
    ),
]


@pytest.mark.parametrize(("said", "left", "words"), MODELS)
def test_what_is_wrong_with_a_model(said: Model, left: Model | None, words: str) -> None:
    better, complaints = sane(seen(said), GPUS)
    assert better.models == ([] if left is None else [left])
    assert words in told(complaints)


def test_of_an_id_that_is_listed_twice_the_first_counts() -> None:
    first, second = Model("x", "loaded"), Model("x", "unloaded")
    better, complaints = sane(seen(first, Model("y", "loaded"), second), None)
    assert better.models == [first, Model("y", "loaded")]
    assert complaints == {"/models: the same id twice, the first one counts": "'x'"}


def test_of_far_too_many_models_those_that_are_resident_stay() -> None:
    crowd = [Model(f"m{i}", "unloaded") for i in range(30_000)]
    better, complaints = sane(seen(*crowd, Model("last", "loaded")), None)
    assert better.models is not None
    assert len(better.models) == MAX_MODELS
    assert better.models[0].id == "last"
    assert list(complaints) == ["/models: over 1000 entries, the others are ignored"]


HEALTHS: list[tuple[Health, Health, str]] = [
    (Health(-1), Health(), "/health: uptime_secs can't be true"),
    (Health(10**400), Health(), "/health: uptime_secs can't be true"),
    (
        Health(devices=[DeviceHealth(0, temp_c=40), DeviceHealth(0, temp_c=90)]),
        Health(devices=[DeviceHealth(0, temp_c=40)]),
        "/health: the same device twice, the first one counts (device 0)",
    ),
    (
        Health(devices=[DeviceHealth(5), DeviceHealth(-1), DeviceHealth(10**400)]),
        Health(devices=[]),
        "/health: a device that it can't have (a device, device -1, device 5)",
    ),
    (
        Health(devices=[DeviceHealth(0, vram_used_mb=-5, vram_free_mb=30000)]),
        Health(devices=[DeviceHealth(0)]),
        "/health: vram_free_mb is more than the device has (device 0)",
    ),
    (
        Health(devices=[DeviceHealth(0, utilization_pct=101, temp_c=5000)]),
        Health(devices=[DeviceHealth(0)]),
        "/health: utilization_pct can't be true (device 0)",
    ),
    (
        Health(models=[ModelLoad("m", in_flight=-1, queue_depth=2, tok_s_decode=NAN)]),
        Health(models=[ModelLoad("m", queue_depth=2)]),
        "/health: in_flight can't be true ('m')",
    ),
    (
        Health(models=[ModelLoad("m", 1), ModelLoad("m", 2), ModelLoad("")]),
        Health(models=[ModelLoad("m", 1)]),
        "/health: the same id twice, the first one counts ('m')",
    ),
    (
        Health(activation=Activation("pre_warming", ["m", "", "m"], "\x07")),
        Health(activation=Activation("pre_warming", ["m"])),
        "/health: activation.pending holds words",
    ),
    (
        Health(activation=Activation(failed=[FailedActivation("", "x"), FailedActivation("m")])),
        Health(activation=Activation(failed=[FailedActivation("m")])),
        "/health: activation: an id that is empty",
    ),
]


@pytest.mark.parametrize(("said", "left", "words"), HEALTHS)
def test_what_is_wrong_with_a_health(said: Health, left: Health, words: str) -> None:
    better, complaints = sane(seen(health=said), GPUS)
    assert better.health == left
    assert words in told(complaints)


DISCOVERIES: list[tuple[Discovery, Discovery, str]] = [
    (
        Discovery([DeviceInfo(0, 8), DeviceInfo(0, 24)]),
        hardware(8),
        "/discovery: the same device twice, the first one counts (device 0)",
    ),
    (
        Discovery([DeviceInfo(0, 8), DeviceInfo(1, -8), DeviceInfo(2, NAN), DeviceInfo(3, 1e12)]),
        hardware(8),
        "/discovery: vram_total_mb can't be true (device 1, device 2, device 3)",
    ),
    (
        Discovery([DeviceInfo(64, 8), DeviceInfo(-1, 8)]),
        Discovery([]),
        "/discovery: a device that it can't have (device -1, device 64)",
    ),
    (
        Discovery([], harnesses=["h", "\x1b"], max_prompt_tokens=-1),
        Discovery([], harnesses=["h"]),
        "/discovery: harnesses holds words",
    ),
]


@pytest.mark.parametrize(("said", "left", "words"), DISCOVERIES)
def test_what_is_wrong_with_a_description(said: Discovery, left: Discovery, words: str) -> None:
    better, complaints = sane(seen(discovery=said), GPUS)
    assert better.discovery == left
    assert words in told(complaints)


def test_a_host_may_use_more_memory_than_its_budget() -> None:
    host = Discovery([DeviceInfo(0, 1000, kind="cpu")])
    busy = seen(
        Model("m", "loaded", vram_used_mb=2000, devices=[0]),
        health=Health(devices=[DeviceHealth(0, vram_used_mb=2000, vram_free_mb=0)]),
    )
    assert sane(busy, host) == (busy, {})


def test_a_new_description_counts_at_once() -> None:
    big = Model("m", "loaded", vram_used_mb=40000, devices=[0])
    better, _ = sane(seen(big, discovery=hardware(48000)), hardware(24000))
    assert better.models == [big]


def test_words_for_people_become_one_plain_line_without_a_complaint() -> None:
    said = "\x1b[31mCUDA error:\r\n  out of memory\u202e" + "!" * 1000
    model = Model("m", "failed", error=said, servable=Servable(ok=False, reason=said))
    better, complaints = sane(
        seen(model, discovery=Discovery([], cuda_unavailable_reason=said)), None
    )
    assert not complaints
    assert better.models is not None
    error = better.models[0].error
    assert error is not None
    assert error.startswith("?[31mCUDA error: out of memory?!!")
    assert len(error) == 400
    assert better.models[0].servable == Servable(ok=False, reason=error)
    assert better.discovery is not None
    assert better.discovery.cuda_unavailable_reason == error


def test_that_health_or_discovery_could_not_be_read_is_told_with_the_reason() -> None:
    silent = Observation(
        1.0, 1.1, models=[], health_failure="/health: 500 \x07", discovery_failure="timed out"
    )
    assert told(sane(silent, None)[1]) == (
        "/discovery: no usable answer, so nothing new is placed there (timed out); "
        "/health: no usable answer (/health: 500 ?)"
    )


def test_a_failed_poll_is_no_nonsense_and_its_reason_is_plain() -> None:
    better, complaints = sane(
        Observation(1.0, 1.1, failure="\x1b" * 9999, health_failure="the same"), None
    )
    assert not complaints
    assert better.failure == "?" * 399 + "…"


def test_other_values_and_another_order_make_the_same_complaints() -> None:
    def wrong(*numbers: int) -> dict[str, str]:
        models = [Model(f"m{abs(n)}", "loaded", vram_used_mb=n) for n in numbers]
        return sane(seen(*models, health=Health(-numbers[0])), None)[1]

    assert wrong(-1, -2) == {"/models: vram_used_mb can't be true": "'m1', 'm2'"}
    ahead = sane(seen(Model("a", "x", vram_used_mb=-1), Model("b", "x", vram_used_mb=-2)), None)
    back = sane(seen(Model("b", "x", vram_used_mb=-9), Model("a", "x", vram_used_mb=-8)), None)
    assert ahead[1] == back[1] == {"/models: vram_used_mb can't be true": "'a', 'b'"}


def test_a_complaint_names_a_few_and_counts_the_rest() -> None:
    wrong = [Model(f"m{i}" + "x" * 400, "loaded", vram_used_mb=-1) for i in range(9)]
    (where,) = sane(seen(*wrong), None)[1].values()
    assert where.count("'m") == 3
    assert where.endswith(" and 6 more")
    assert len(where) < 220


def test_complaints_stand_for_a_while_after_they_were_last_made() -> None:
    def after(before: dict[str, Nonsense], complaints: dict[str, str], at: float) -> dict:  # type: ignore[type-arg]
        return dict(standing(before, complaints, Observation(at, at, models=[])))

    first = after({}, {"/health: x": "a"}, 100.0)
    assert first == {"/health: x": Nonsense("a", 100.0)}
    assert after(first, {}, 100.0 + STANDS_FOR - 1) == first
    assert not after(first, {}, 100.0 + STANDS_FOR)
    assert after(first, {"/health: x": "b"}, 130.0) == {"/health: x": Nonsense("b", 130.0)}


def test_a_complaint_about_a_description_stands_until_it_is_described_anew() -> None:
    before = standing({}, {"/discovery: x": ""}, Observation(1.0, 1.0, models=[]))
    later = Observation(1000.0, 1000.0, models=[])
    assert standing(before, {}, later) == before
    described = msgspec.structs.replace(later, discovery=Discovery([]))
    assert not standing(before, {}, described)


def test_a_failed_poll_leaves_the_complaints_as_they_are() -> None:
    before = {"/models: x": Nonsense("", 1.0)}
    assert standing(before, {}, Observation(1000.0, 1000.0, failure="no")) is before


def test_many_complaints_are_one_short_line() -> None:
    many = {f"c{i}": Nonsense("", 0.0) for i in range(20)}
    assert in_words(many) == "c0; c1; c2; c3; c4; c5; c6; c7 and 12 more"


@given(nasty.observations(), st.none() | nasty.discoveries)
def test_whatever_is_reported_what_is_left_makes_sense(
    said: Observation, known: Discovery | None
) -> None:
    if known is not None:
        known = sane(seen(discovery=known), None)[0].discovery
    better, complaints = sane(said, known)
    words = told(complaints)
    assert words.isprintable()
    assert len(complaints) < 50
    assert all(len(it) + len(where) < 1000 for it, where in complaints.items())
    again = msgspec.structs.replace(better, health_failure=None, discovery_failure=None)
    assert sane(again, known) == (again, {})
    assert_sane(better)
    assert_memory_adds_up(better, better.discovery or known or Discovery([]))
    msgspec.json.encode((better.models, better.health, better.discovery, better.failure))


def assert_sane(better: Observation) -> None:
    health, discovery = better.health or Health(), better.discovery or Discovery([])
    if better.models is None:
        return
    entries = [
        [info.id for info in better.models],
        [load.id for load in health.models or ()],
        [gauge.index for gauge in health.devices or ()],
        [device.index for device in discovery.devices],
    ]
    for keys in entries:
        assert len(set(keys)) == len(keys)
        for key in keys:
            if isinstance(key, str):
                assert 0 < len(key) <= 512
                assert key.isprintable()
            else:
                assert 0 <= key < MAX_DEVICES


def assert_memory_adds_up(better: Observation, hardware: Discovery) -> None:
    """`memory` and `residents` count on it, and check nothing themselves."""
    there = {device.index for device in hardware.devices}
    amounts: list[float | None] = [device.vram_total_mb for device in hardware.devices]
    for gauge in (better.health and better.health.devices) or ():
        amounts += [gauge.vram_free_mb, gauge.vram_used_mb]
        assert not there or gauge.index in there
    for info in better.models or ():
        amounts.append(info.vram_used_mb)
        assert len(set(info.devices or ())) == len(info.devices or ())
        assert not there or there.issuperset(info.devices or ())
    if better.models is not None:
        assert all(mb is None or 0 <= mb <= MAX_MEMORY for mb in amounts)


def told(complaints: dict[str, str]) -> str:
    return in_words({it: Nonsense(where, 0.0) for it, where in complaints.items()})


def test_an_id_may_be_as_long_as_what_can_be_asked_for() -> None:
    assert MAX_ID == MAX_MODEL_NAME


def test_list_of_loadable_models_that_is_too_long_is_dropped() -> None:
    many = [Loadable(f"m{number}") for number in range(MAX_LOADABLE + 1)]
    better, complaints = sane(seen(discovery=hardware(8, loadable=many)), None)
    assert better.discovery is not None
    assert better.discovery.loadable is None
    assert complaints == {
        f"/discovery: loadable has over {MAX_LOADABLE} entries, and is ignored": ""
    }
    fine = seen(discovery=hardware(8, loadable=many[1:]))
    assert sane(fine, None) == (fine, {})


def test_loadable_models_that_nobody_could_ask_for_are_dropped() -> None:
    said = [Loadable("m", ["Q4_0"]), Loadable(""), Loadable("m"), Loadable("x", ["q"] * 100)]
    better, complaints = sane(seen(discovery=hardware(8, loadable=said)), None)
    assert better.discovery is not None
    assert better.discovery.loadable == [Loadable("m", ["Q4_0"]), Loadable("x")]
    assert len(complaints) == 3


@pytest.mark.parametrize("quant", ["Q" * 10_000, "Q\n4", "\x1b[31m"])
def test_quants_that_can_not_be_told_to_people_are_dropped(quant: str) -> None:
    said = [Loadable("m", ["", "Q4_0", quant]), Loadable("x", [""])]
    better, complaints = sane(seen(discovery=hardware(8, loadable=said)), None)
    assert better.discovery is not None
    assert better.discovery.loadable == [Loadable("m"), Loadable("x", [""])]
    assert list(complaints) == [
        "/discovery: loadable: quants that are too many, too long or not printable"
    ]
