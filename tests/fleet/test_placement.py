from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.fleet.assessment import assess, glance, infeasibility
from cortexd.fleet.memory import free, headroom, totals
from cortexd.fleet.placement import NoPlacement, Placement, load_request, place
from cortexd.fleet.residents import Resident, may_displace, residents
from cortexd.fleet.room import gains
from cortexd.fleet.snapshot import (
    Failure,
    FootprintKey,
    FreedMemory,
    Ledger,
    Node,
    Policy,
    Promise,
    Snapshot,
)
from cortexd.wire.neuron import DeviceHealth, DeviceInfo, Discovery, Loadable, Model
from tests.fleet.fleet import fleet, full, hardware, held, node
from tests.fleet.test_memory import AMOUNTS, GAUGES, INDICES, MODELS, PROMISES

NOW = 1000.0
M = Profile("m", vram_mb=9000)


def placed(
    snapshot: Snapshot, profile: Profile = M, ledger: Ledger | None = None, **how: bool
) -> Placement:
    found = place(profile, snapshot, ledger or Ledger(), NOW, **how)
    assert isinstance(found, Placement)
    return found


def refused(
    snapshot: Snapshot, profile: Profile = M, ledger: Ledger | None = None, **how: bool
) -> NoPlacement:
    found = place(profile, snapshot, ledger or Ledger(), NOW, **how)
    assert isinstance(found, NoPlacement)
    return found


def test_pinned_nodes_come_in_their_order_then_by_name() -> None:
    def chosen(profile: Profile, *down: str) -> str | None:
        nodes = [node(name, up=name not in down) for name in "cab"]
        found = place(profile, fleet(*nodes), Ledger(), 0.0)
        return found.node if isinstance(found, Placement) else None

    assert chosen(Profile("m")) == "a"
    assert chosen(Profile("m", pinned_on=("c", "b"))) == "c"
    assert chosen(Profile("m", pinned_on=("c", "b")), "c") == "b"
    assert chosen(Profile("m", pinned_on=("c", "b")), "c", "b") is None


# Which nodes have its file.

HAS = hardware(24000, loadable=[Loadable("m", [""])])
LACKS = hardware(24000, loadable=[Loadable("x", [""])])


def test_nothing_is_evicted_on_a_node_that_lacks_the_file() -> None:
    nothing = refused(fleet(full("a", "x", discovery=LACKS)))
    assert nothing.infeasible == {"a": "has no file for 'm'"}
    nothing = refused(fleet(full("a", "x"), node("b", up=False, discovery=HAS)), ledger=UNLOADABLE)
    assert nothing.infeasible == {"a": "No file for 'm'"}
    assert nothing.asleep == {"b": "unhealthy (connection refused)"}
    assert nothing.holders == {"b"}


UNLOADABLE = Ledger(unloadable={("a", "m"): "No file for 'm'"})


def test_a_node_that_has_the_file_is_preferred_to_one_that_does_not_say() -> None:
    has = node("b", free=(10000,), discovery=HAS)
    assert placed(fleet(node("a"), has)).node == "b"
    assert placed(fleet(node("a", discovery=LACKS), has)).node == "b"
    # An operator's order comes first, and room that is there before room that has to be made.
    assert placed(fleet(node("a"), has), Profile("m", vram_mb=9000, pinned_on=("a", "b"))).node == (
        "a"
    )
    assert placed(fleet(node("a"), full("b", "x", discovery=HAS))).node == "a"


def test_room_is_made_where_the_file_is_before_where_it_may_not_be() -> None:
    ledger = Ledger(last_access={("b", "x"): NOW - 1, ("b", "y"): NOW - 1})
    has = full("b", "x", "y", discovery=HAS)
    assert placed(fleet(full("a", "z"), has), ledger=ledger).node == "b"
    assert placed(fleet(full("a", "z"), has, full("c", "v")), ledger=ledger).node == "b"


# Memory that is known to be coming.


def coming(mb: float, *devices: int) -> FreedMemory:
    held = dict.fromkeys(devices or (0,), mb)
    return FreedMemory(held, dict.fromkeys(held, 0.0), held, NOW)


def test_memory_that_is_coming_is_waited_for_before_anything_is_evicted() -> None:
    ledger = Ledger(freed={"a": coming(6000)})
    found = placed(fleet(full("a", "x"), full("b", "y")), ledger=ledger)
    assert (found.node, found.victims, found.awaits_memory) == ("a", (), True)
    assert not found.has_room
    found = placed(fleet(full("a", "x"), node("b", free=(9000,))), ledger=ledger)
    assert (found.node, found.has_room) == ("b", True)


def test_coming_memory_promised_to_another_model_does_not_count() -> None:
    ledger = Ledger(
        freed={"a": coming(6000)}, promises={("a", "other"): Promise({0: 9000.0}, None)}
    )
    found = placed(fleet(full("a", "x")), ledger=ledger)
    assert (found.victims, found.awaits_memory) == (("x",), False)


def test_coming_memory_reduces_the_models_to_unload() -> None:
    snapshot = fleet(full("a", "x", "y", "z", mb=21000))
    ledger = Ledger(last_access={("a", "x"): NOW - 30}, freed={"a": coming(5000)})
    assert len(placed(snapshot, Profile("m", vram_mb=14000), ledger).victims) == 1
    ledger.freed.clear()
    assert len(placed(snapshot, Profile("m", vram_mb=14000), ledger).victims) == 2


def test_memory_that_is_coming_counts_device_by_device() -> None:
    two = node("a", {"x": held(40000, 0, 1)}, gpus=(24000, 24000), free=(4000, 4000))
    ledger = Ledger(freed={"a": coming(20000, 1)})
    found = placed(fleet(two), ledger=ledger)
    assert (found.spec.devices, found.awaits_memory) == ([1], True)


# Where there is room.


def test_a_model_goes_where_it_fits_and_most_memory_is_free_then_by_name() -> None:
    small, large = node("a", free=(10000,)), node("c", free=(12000,))
    assert placed(fleet(small, node("b", free=(12000,)), large)).node == "b"
    assert placed(fleet(node("a", free=(8999,)), large)).node == "c"
    assert placed(fleet(node("a", free=(9000,)))).victims == ()


def test_nothing_is_evicted_while_some_node_has_room() -> None:
    snapshot = fleet(full("a", "x"), node("b", free=(9000,)))
    pinned = Profile("m", vram_mb=9000, pinned_on=("a", "b"))
    for profile in (M, pinned):
        found = placed(snapshot, profile)
        assert (found.node, found.victims) == ("b", ())


def test_a_model_is_loaded_on_the_devices_with_most_memory_free() -> None:
    gpus, free_mb = (24000, 24000, 24000), (9000, 23000, 12000)
    snapshot = fleet(node("a", gpus=gpus, free=free_mb))
    found = placed(snapshot)
    assert (found.spec.devices, found.needs) == ([1], {1: 9000})
    found = placed(snapshot, Profile("m", vram_mb=20000, min_devices=2))
    assert (found.spec.devices, found.needs) == ([1, 2], {1: 10000, 2: 10000})
    even = fleet(node("a", gpus=gpus, free=(5000, 9000, 9000)))
    assert placed(even).spec.devices == [1]


def test_each_device_must_hold_its_share() -> None:
    two = Profile("m", vram_mb=20000, min_devices=2)
    assert not refused(fleet(node("a", gpus=(24000, 24000), free=(24000, 9999))), two).infeasible
    assert placed(fleet(node("a", gpus=(24000, 24000), free=(24000, 10000))), two).spec.devices


def test_devices_under_the_floor_are_never_chosen() -> None:
    profile = Profile("m", vram_mb=4000, min_device_vram_mb=16000)
    snapshot = fleet(node("a", gpus=(12000, 24000), free=(12000, 5000)))
    assert placed(snapshot, profile).spec.devices == [1]


def test_memory_promised_to_others_or_reserved_is_not_room() -> None:
    promised = Ledger(promises={("a", "n"): Promise({0: 16000.0}, {0: 24000.0})})
    assert placed(fleet(node("a"), node("b", free=(9000,))), ledger=promised).node == "b"
    reserved = node("a", reserve_mb=16000)
    assert placed(fleet(reserved, node("b", free=(9000,)))).node == "b"


def test_what_was_measured_on_a_node_replaces_the_profiles_word() -> None:
    snapshot = fleet(node("a", free=(9500,)), node("b", free=(9200,)))
    key = FootprintKey("m", "llamacpp", None, 1, "a")
    assert placed(snapshot, ledger=Ledger(footprints={key: 9600.0})).node == "b"
    assert placed(snapshot, ledger=Ledger(footprints={key: 9300.0})).needs == {0: 9300}


def test_a_model_of_unknown_size_goes_where_most_memory_is_free_and_displaces_nobody() -> None:
    found = placed(fleet(full("a", "x"), full("b", "y", mb=19000)), Profile("m"))
    assert (found.node, found.victims, found.needs) == ("b", (), {})
    assert found.spec.devices == [0]


# Who has to leave.


def test_the_fewest_have_to_leave_then_the_least_recently_used() -> None:
    ledger = Ledger(last_access={("a", "x"): 1.0, ("b", "y"): 2.0, ("c", "v"): 3.0})
    one, other, two = full("c", "v"), full("b", "y"), full("a", *"uwxzq")
    assert placed(fleet(one, two), ledger=ledger).node == "c"
    found = placed(fleet(one, other, two), ledger=ledger)
    assert (found.node, found.victims, found.blockers) == ("b", ("y",), ())


def test_then_most_memory_free_then_the_name() -> None:
    assert placed(fleet(full("a", "x"), full("b", "y", mb=19000))).node == "b"
    assert placed(fleet(full("b", "y"), full("a", "x"))).node == "a"


def test_the_pinned_order_comes_before_the_number_of_those_who_leave() -> None:
    profile = Profile("m", vram_mb=9000, pinned_on=("a", "b"))
    assert placed(fleet(full("b", "y"), full("a", *"vwxyz")), profile).node == "a"


def test_equals_may_displace_equals_and_nobody_a_higher_class() -> None:
    one = full("a", "x")
    assert placed(fleet(one, models=(Profile("x"),))).victims == ("x",)
    nothing = refused(fleet(one, models=(Profile("x", residency_priority=101),)))
    assert nothing.crowded == {
        "a": "9000 MiB needed on 1 device, 4000 free; in the way: 'x' (class 101, above 100)"
    }
    pinned = Profile("m", vram_mb=9000, pinned_on=("a",))
    assert placed(fleet(one, models=(Profile("x", residency_priority=101),)), pinned).victims


def test_models_at_work_are_waited_for_only_when_nobody_idle_is_enough() -> None:
    ledger = Ledger(in_flight={("a", "x"): 1, ("b", "y"): 1}, last_access={("b", "z"): NOW})
    found = placed(fleet(full("a", "x"), full("b", "y", "z")), ledger=ledger)
    assert (found.node, found.victims, found.blockers) == ("b", ("z",), ())
    found = placed(fleet(full("a", "x")), ledger=ledger)
    assert (found.victims, found.blockers) == ((), ("x",))


def test_idle_ones_that_have_to_leave_as_well_are_victims_beside_the_blockers() -> None:
    profile, ledger = Profile("m", vram_mb=22000), Ledger(in_flight={("a", "x"): 1})
    found = placed(fleet(full("a", "x", "y")), profile, ledger)
    assert (found.victims, found.blockers) == (("y",), ("x",))


def test_a_fresh_model_is_only_waited_for() -> None:
    ledger = Ledger(served={("a", "x"): NOW - 1})
    found = placed(fleet(full("a", "x")), ledger=ledger)
    assert (found.victims, found.blockers) == ((), ("x",))


def test_who_went_on_working_when_it_got_nothing_new_is_waited_for_last() -> None:
    at_work = {("a", "x"): 1, ("b", "y"): 1, ("b", "z"): 1}
    ledger = Ledger(in_flight=at_work, stubborn={("a", "x"): NOW + 1})
    snapshot = fleet(full("a", "x", mb=22000), full("b", "y", "z", mb=7000))
    profile = Profile("m", vram_mb=23000)
    assert placed(snapshot, profile, ledger).node == "b"
    ledger.stubborn["b", "z"] = NOW + 1
    found = placed(snapshot, profile, ledger)
    assert (found.node, found.blockers) == ("a", ("x",)), "nobody is given up"


def test_who_is_on_the_way_out_goes_on_being_waited_for() -> None:
    at_work = {("a", "x"): 1, ("b", "y"): 1}
    used = {("a", "x"): NOW - 1, ("b", "y"): NOW - 2}
    ledger = Ledger(in_flight=at_work, last_access=used)
    snapshot = fleet(full("a", "x"), full("b", "y"))
    assert placed(snapshot, ledger=ledger).node == "b"
    ledger.gates["y"] = {"b"}
    used["b", "y"] = NOW
    assert placed(snapshot, ledger=ledger).node == "b"


def test_so_is_another_load_under_way() -> None:
    ledger = Ledger(promises={("a", "n"): Promise({0: 20000.0}, {0: 24000.0})})
    found = placed(fleet(node("a")), ledger=ledger)
    assert (found.victims, found.blockers) == ((), ("n",))
    coming = node("a", {"n": held(20000, 0, status="loading")}, free=(4000,))
    assert placed(fleet(coming)).blockers == ("n",)


def test_a_load_that_nobody_asked_for_waits_for_no_one_and_takes_only_what_is_unused() -> None:
    snapshot = fleet(full("a", "x"))
    assert placed(snapshot, unasked=True).victims == ("x",)
    used = Ledger(last_access={("a", "x"): NOW - 599})
    nothing = refused(snapshot, ledger=used, unasked=True)
    assert "'x' (it was asked for in the last 10m)" in nothing.crowded["a"]
    assert placed(snapshot, ledger=used).victims == ("x",)
    works = Ledger(in_flight={("a", "x"): 1})
    assert "'x' (it is at work, and" in refused(snapshot, ledger=works, unasked=True).crowded["a"]
    works.served["a", "x"] = NOW - 100
    assert "'x' (it is at work)" in refused(snapshot, ledger=works, unasked=True).crowded["a"]


def test_with_eviction_off_a_full_node_stays_full() -> None:
    nothing = refused(fleet(full("a", "x"), policy=Policy(evicts=False)))
    assert "'x' (eviction is turned off)" in nothing.crowded["a"]


def test_memory_that_no_model_holds_is_in_the_way_for_good() -> None:
    nothing = refused(fleet(node("a", free=(4000,), reserve_mb=1000)))
    assert nothing.crowded == {
        "a": "9000 MiB needed on 1 device, 3000 free; in the way: what is not a model's, of 23000 "
        "MiB there are besides reserve_mb = 1000"
    }


def test_a_model_that_is_being_unloaded_for_another_may_serve_two_newcomers_if_it_is_enough() -> (
    None
):
    snapshot = fleet(full("a", "x"))
    ledger = Ledger(gates={"x": {"a"}}, promises={("a", "n"): Promise({0: 9000.0})})
    assert placed(snapshot, ledger=ledger).victims == ("x",)
    ledger.promises["a", "n"] = Promise({0: 16000.0})
    found = placed(snapshot, ledger=ledger)
    assert (found.victims, found.blockers) == (("x",), ("n",))


def test_a_node_that_backs_off_is_passed_over_and_one_to_avoid_is_not_looked_at() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", NOW + 1), ("b", "m"): Failure("no", NOW)})
    snapshot = fleet(node("a"), node("b"))
    assert placed(snapshot, ledger=ledger).node == "b"
    found = place(M, snapshot, ledger, NOW, avoid=("b",))
    assert isinstance(found, NoPlacement)
    assert set(found.failures) == {"a"}
    assert not found.crowded


# What is said about one node.


def test_no_placement_sorts_the_nodes_by_what_stands_in_the_way() -> None:
    snapshot = fleet(node("small", gpus=(4,)), node("down", up=False), node("new", gpus=None))
    nothing = refused(snapshot, Profile("m", min_device_vram_mb=8))
    assert set(nothing.infeasible) == {"small"}
    assert nothing.asleep == {
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


PROFILES = st.builds(
    Profile,
    st.just("m"),
    vram_mb=st.none() | st.integers(1, 60),
    min_devices=st.integers(1, 3),
    residency_priority=st.sampled_from([50, 100, 150]),
)
RESIDENTS = st.builds(
    Model,
    st.just(""),
    st.sampled_from(["loaded", "loaded", "loaded", "loading"]),
    devices=st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=2),
    vram_used_mb=st.none() | st.integers(0, 20),
)
NODES = st.tuples(
    st.lists(st.integers(10, 30), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=4),
    st.dictionaries(st.sampled_from("uvwxyz"), RESIDENTS, max_size=6),
    st.sampled_from([0, 0, 3]),
)
KEYS = st.tuples(st.sampled_from("ab"), st.sampled_from("uvwxyz"))
LEDGERS = st.builds(
    Ledger,
    in_flight=st.dictionaries(KEYS, st.just(1), max_size=4),
    last_access=st.dictionaries(KEYS, st.floats(1, NOW), max_size=8),
    served=st.dictionaries(KEYS, st.floats(NOW - 30, NOW), max_size=2),
    promises=st.dictionaries(
        KEYS,
        st.builds(
            Promise,
            st.dictionaries(st.integers(0, 3), st.integers(0, 20), min_size=1, max_size=2),
            st.none() | st.dictionaries(st.integers(0, 3), st.integers(0, 30), max_size=2),
        ),
        max_size=1,
    ),
)
CLASSES = tuple(
    Profile(model, residency_priority=priority)
    for model, priority in zip("uvwxyz", (50, 100, 150, 50, 100, 100), strict=True)
)


@given(PROFILES, st.lists(NODES, min_size=1, max_size=2), LEDGERS, st.booleans(), st.booleans())
def test_a_placement_keeps_its_promises(
    profile: Profile,
    nodes: list[tuple[list[int], list[int], dict[str, str | Model], int]],
    ledger: Ledger,
    unasked: bool,
    evicts: bool,
) -> None:
    """Of any fleet: it fits, or it does once those have left who may, all of them needed."""
    snapshot = fleet(
        *(
            node(name, models, gpus=tuple(gpus), free=tuple(gauges), reserve_mb=reserve)
            for name, (gpus, gauges, models, reserve) in zip("ab", nodes, strict=False)
        ),
        models=CLASSES,
        policy=Policy(evicts=evicts),
    )
    found = place(profile, snapshot, ledger, NOW, unasked=unasked)
    if isinstance(found, NoPlacement):
        assert len(found.crowded) + len(found.infeasible) == len(snapshot.nodes)
        return
    one = snapshot.nodes[found.node]
    devices, leaving = found.spec.devices or [], (*found.victims, *found.blockers)
    assert len(set(devices)) == profile.min_devices
    assert devices == sorted(devices)
    assert set(found.needs) == (set(devices) if profile.vram_mb else set())

    there = {r.model: r for r in residents(one, snapshot, ledger, NOW, unasked=unasked)}
    assert all(there[model].priority <= profile.priority for model in leaving)
    assert all(there[model].is_idle for model in found.victims)
    assert not any(there[model].is_idle for model in found.blockers)
    assert not found.blockers or (evicts and not unasked)
    room = free(one, snapshot, ledger)
    if not leaving:
        assert all(room[index] >= mb for index, mb in found.needs.items())
        return
    for other in snapshot.nodes.values():
        assert not glance(profile, other, snapshot, ledger, NOW).fits
    left = headroom(one, snapshot, ledger)

    def is_enough(*spared: str, by: float) -> bool:
        """By what is known to be given back; those of unknown size may give back all."""
        gone = [there[model] for model in leaving if model not in spared]
        return all(
            left[index] + sum(30 if r.mb is None else r.mb for r in gone if index in r.devices)
            >= mb + by
            for index, mb in found.needs.items()
        )

    rounding = 1e-9
    assert is_enough(by=-rounding)
    if all(there[model].mb is not None for model in leaving):
        assert not any(is_enough(model, by=rounding) for model in leaving)


@given(
    PROFILES,
    st.lists(st.builds(DeviceInfo, INDICES, AMOUNTS), max_size=6),
    st.lists(GAUGES, max_size=6),
    st.lists(MODELS, max_size=4),
    st.dictionaries(st.tuples(st.just("a"), st.sampled_from(["x", "n"])), PROMISES, max_size=2),
)
def test_whatever_a_node_reports_there_is_an_answer(
    profile: Profile,
    devices: list[DeviceInfo],
    gauges: list[DeviceHealth],
    models: list[Model],
    promises: dict[tuple[str, str], Promise],
) -> None:
    listed: dict[str, str | Model] = {model.id: model for model in models}
    one = node("a", listed, discovery=Discovery(devices), gauges=gauges)
    snapshot, ledger = fleet(one), Ledger(promises=promises)
    found = place(profile, snapshot, ledger, NOW)
    if isinstance(found, Placement):
        assert len(found.spec.devices or []) == profile.min_devices
        assert set(found.spec.devices or []) <= {device.index for device in devices}
    else:
        assert found.infeasible or found.crowded


@given(st.permutations("abcdef"), st.data())
def test_a_close_look_at_every_node_would_choose_no_other(
    order: list[str], data: st.DataObject
) -> None:
    """`place` looks closely at promising nodes only."""
    nodes, ledger = [], Ledger()
    for name in order:
        models = data.draw(st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=4, unique=True))
        nodes.append(full(name, *models, mb=data.draw(st.integers(16000, 18000))))
        for model in models:
            ledger.last_access[name, model] = data.draw(st.sampled_from([0.0, 1.0, 2.0]))
            if data.draw(st.integers(0, 3)) == 0:
                ledger.in_flight[name, model] = 1
                if data.draw(st.booleans()):
                    ledger.gates.setdefault(model, set()).add(name)
                if data.draw(st.booleans()):
                    ledger.stubborn[name, model] = NOW + 1
    snapshot = fleet(*nodes)
    looks = [assess(M, one, snapshot, ledger, NOW) for one in snapshot.nodes.values()]
    best = min(
        looks,
        key=lambda seen: (
            bool(seen.blockers) + seen.is_stubborn,
            len(seen.victims) + len(seen.blockers),
            seen.last_use,
            -seen.free_mb,
            seen.node,
        ),
    )
    assert placed(snapshot, ledger=ledger).node == best.node


# Whatever is shared out among devices, or among models of unknown size, is whole: sums are exact.
UNIT = 5040


def crowded(random: Random) -> tuple[Profile, Snapshot, Ledger]:
    """A model and a small fleet where it seldom has room, but where some can often be made."""
    nodes, ledger = [], Ledger()
    models = [
        Profile(model, residency_priority=random.choice([50, 100, 100, 200]))
        for model in "stuvwxyz"
    ]
    is_wide, work = random.random() < 0.5, random.choice([0.1, 0.4, 1])
    for name in "abcde"[: random.randint(1, 5)]:
        devices, there = range(random.randint(1, 4)), {}
        for model in random.sample(models, random.randint(0, 8)):
            width = min(len(devices), random.choice([1, 1, 2, 3] if is_wide else [1]))
            mb = random.choice([None, *range(1, 10)])
            there[model.id] = Model(
                model.id,
                random.choice(["loaded"] * 9 + ["loading"]),
                devices=random.choice([None, random.sample(devices, width)]),
                vram_used_mb=mb and mb * width * UNIT,
            )
            key = name, model.id
            ledger.last_access[key] = random.choice([1.0, 2.0, random.random() * NOW])
            if random.random() < work:
                busy: list[dict[tuple[str, str], Any]] = [ledger.in_flight, ledger.served]
                random.choice(busy)[key] = NOW
            if random.random() < 0.05:
                ledger.spared[key] = NOW + 1
        if random.random() < 0.2:
            taken = {random.choice(devices): random.randint(0, 9) * UNIT}
            before = random.choice([None, dict.fromkeys(devices, 9 * UNIT)])
            ledger.promises[name, random.choice("mnsz")] = Promise(taken, before)
        nodes.append(
            node(
                name,
                there,
                gpus=tuple(random.choice([18, 24, 24]) * UNIT for _ in devices),
                free=tuple(random.randint(0, 6) * UNIT for _ in devices),
                reserve_mb=random.choice([0, 0, 2]) * UNIT,
            )
        )
    count = random.randint(1, 3)
    profile = Profile(
        "m",
        min_devices=count,
        vram_mb=random.randint(4, 12) * count * UNIT,
        residency_priority=random.choice([50, 100, 150]),
        pinned_on=random.choice([(), (), ("b", "a", "c")]),
    )
    policy = Policy(evicts=random.random() < 0.95)
    return profile, fleet(*nodes, models=tuple(models), policy=policy), ledger


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.booleans())
def test_trying_everything_would_choose_the_same(seed: int, unasked: bool) -> None:
    """`place` looks closely at promising nodes only, and tries few sets of their devices."""
    profile, snapshot, ledger = crowded(Random(seed))
    ways = [
        best_way(profile, one, snapshot, ledger, unasked)
        for one in snapshot.nodes.values()
        if infeasibility(profile, one) is None
    ]
    best = min((way for way in ways if way is not None), default=None)
    found = place(profile, snapshot, ledger, NOW, unasked=unasked)
    if isinstance(found, NoPlacement):
        assert best is None
        assert len(found.crowded) == len(ways)
    else:
        assert best is not None
        assert best[-1] == (found.node, found.spec.devices, [*found.victims], [*found.blockers])


def best_way(
    profile: Profile, host: Node, snapshot: Snapshot, ledger: Ledger, unasked: bool
) -> tuple[Any, ...] | None:
    """What it costs to load it there, the better the less, and what `place` would say of it."""
    share = (profile.vram_mb or 0) / profile.min_devices
    there, left = totals(host.hardware), headroom(host, snapshot, ledger, besides=profile.id)
    limits = {index: mb - host.reserve_mb for index, mb in there.items()}
    people = residents(host, snapshot, ledger, NOW, unasked=unasked)
    returns = gains(people, left, limits)
    willing = [one for one in people if may_displace(profile, one)]
    idle = [one for one in willing if one.is_idle]
    working = [one for one in willing if not one.is_idle]

    def short(devices: tuple[int, ...], gone: list[Resident]) -> set[int]:
        back = {i: sum(returns[one.model].get(i, 0.0) for one in gone) for i in devices}
        return {i for i in devices if left[i] + back[i] < share}

    ways = []
    usable = sorted(index for index, mb in limits.items() if mb >= share)
    for devices in combinations(usable, profile.min_devices):
        for others in ([], working) if snapshot.policy.evicts and not unasked else ([],):
            gone: list[Resident] = []
            for one in idle + others:
                if any(returns[one.model].get(i) for i in short(devices, gone)):
                    gone.append(one)
            if short(devices, gone):
                continue
            for one in gone[::-1]:
                without = [other for other in gone if other is not one]
                if not short(devices, without):
                    gone = without
            free_mb = sum(left[i] if gone else max(0.0, left[i]) for i in devices)
            is_waiting = any(one in working for one in gone)
            last_use = max((one.last_use for one in gone), default=0.0)
            ways.append((is_waiting, len(gone), last_use, -free_mb, list(devices), gone))
            break
    if not ways:
        return None
    is_waiting, count, last_use, _, devices, gone = min(ways, key=lambda way: way[:-1])
    rank = profile.pinned_on.index(host.name) if profile.pinned_on else 0
    free_mb = sum(max(0.0, left[i]) for i in devices)
    victims = [one.model for one in willing if one in gone and one in idle]
    blockers = [one.model for one in willing if one in gone and one in working]
    said = host.name, devices, victims, blockers
    return count > 0, is_waiting, rank, count, last_use, -free_mb, host.name, said
