"""GET /api/fleet: what there is, as it is, and nothing that is nobody's business."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.control.entry import Entry
from cortexd.fleet.snapshot import Ledger
from cortexd.gateway.fleet import pieces
from cortexd.wire.fleet import Device, Fleet, Load, Model, Totals
from cortexd.wire.neuron import DeviceHealth, Health, ModelLoad, Servable
from cortexd.wire.neuron import Model as Reported
from tests.fakes import FakeNeuron
from tests.fleet.fleet import fleet as picture
from tests.fleet.fleet import node
from tests.gateway.fleet import running_fleet, until

NOW = 1000.0


def view(*args: Any) -> Fleet:
    return msgspec.json.decode(b"".join(pieces(*args)), type=Fleet)


def seen(*nodes: Any, ledger: Ledger | None = None, **fields: Any) -> Fleet:
    return view(picture(*nodes, **fields), ledger or Ledger(), [], 0, NOW)


def test_nodes_are_listed_by_name_with_what_is_wrong_with_them() -> None:
    fleet = seen(
        node("d", up=False, draining=True),
        node("c", draining=True),
        node("b", up=False, trouble="no route to host"),
        node("a", last_contact=NOW - 1.25, weight=2.0, reserve_mb=512),
    )
    assert [(it.name, it.status, it.draining, it.trouble) for it in fleet.nodes] == [
        ("a", "up", False, None),
        ("b", "down", False, "no route to host"),
        ("c", "draining", True, None),
        ("d", "down", True, "connection refused"),
    ]
    first = fleet.nodes[0]
    assert (first.contact_seconds, first.weight, first.reserve_mb) == (1.2, 2.0, 512)
    assert first.host == "a:13131"


def test_a_node_that_was_not_asked_yet_says_so() -> None:
    (only,) = seen(node("a", up=False, polled=False, trouble=None, last_contact=None)).nodes
    assert (only.status, only.trouble, only.contact_seconds) == ("down", "not polled yet", None)


def test_devices_are_what_is_described_with_what_is_measured() -> None:
    health = Health(
        devices=[
            DeviceHealth(1, vram_used_mb=9, vram_free_mb=15991, utilization_pct=50, temp_c=61),
            DeviceHealth(7, vram_used_mb=1),
        ]
    )
    (only,) = seen(node("a", gpus=(24000, 16000), health=health)).nodes
    assert only.devices == [
        Device(0, total_mb=24000),
        Device(1, total_mb=16000, used_mb=9, free_mb=15991, utilization_pct=50, temp_c=61),
        Device(7, used_mb=1),
    ]


def test_models_say_what_they_do_and_for_whom() -> None:
    ledger = Ledger(
        in_flight={("a", "busy"): 2},
        last_access={("a", "busy"): NOW - 5, ("a", "idle"): NOW - 60},
        gates={"idle": {"a"}},
    )
    health = Health(models=[ModelLoad("hf:busy", in_flight=3, queue_depth=4)])
    wedged = Reported("wedged", "loaded", servable=Servable(ok=False, reason="oom"))
    known = {"busy": Reported("busy", "loaded", devices=[0], vram_used_mb=7.5), "idle": "loaded"}
    fleet = seen(
        node("a", {**known, "wedged": wedged}, health=health),
        ledger=ledger,
        models=(Profile("busy", source="hf", pinned_on=("a",)),),
    )
    assert fleet.nodes[0].in_flight == 2
    assert fleet.nodes[0].models == [
        Model(
            "busy",
            "loaded",
            devices=[0],
            vram_used_mb=7.5,
            in_flight=2,
            running=3,
            queued=4,
            priority=1000,
            idle_seconds=0.0,
        ),
        Model("idle", "loaded", priority=100, idle_seconds=60.0, gated=True),
        Model("wedged", "loaded", priority=100, unservable="oom"),
    ]


async def test_a_load_says_how_far_it_is() -> None:
    entry = Entry("m", "a", deadline=0.0, is_ours=True)
    entry.began, entry.stage, entry.fraction = NOW - 3, "weights", 0.5
    fleet = view(picture(node("a")), Ledger(), [entry], 4, NOW)
    assert fleet.loads == [Load("m", "a", "queued", "weights", 0.5, seconds=3.0)]
    assert fleet.totals.waiting == 4


def test_the_totals_count_what_is_there() -> None:
    health = Health(devices=[DeviceHealth(0, vram_used_mb=1000)])
    fleet = seen(
        node("a", {"m": "loaded", "n": "unloaded"}, health=health),
        node("b", {"m": "reloading"}, draining=True),
        node("c", {"m": "loaded"}, up=False),
        ledger=Ledger(in_flight={("a", "m"): 2, ("b", "m"): 1}),
    )
    assert fleet.totals == Totals(
        nodes=3, up=1, draining=1, devices=2, total_mb=48000, used_mb=1000, loaded=2, in_flight=3
    )


async def test_it_is_on_the_wire_with_loads_and_waiters() -> None:
    neuron = FakeNeuron({"n": "loaded"})
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: sum(fleet.gateway.table.waiting().values()) == 1)
        answer = await fleet.get("/api/fleet")
        assert answer.headers["Content-Type"].startswith("application/json")
        seen = msgspec.json.decode(answer.body, type=Fleet)
        assert [(it.model, it.node, it.state, it.waiting, it.ours) for it in seen.loads] == [
            ("m", "a", "loading", 1, True)
        ]
        assert (seen.totals.waiting, seen.totals.loaded, seen.settled) == (1, 1, True)
        async with fleet.client.head(fleet.url + "/api/fleet") as response:
            assert (response.status, await response.read()) == (200, b"")
        neuron.release.set()
        assert (await asking).status == 200


async def test_no_secret_and_no_prompt_is_in_it() -> None:
    async with running_fleet(tokens={"a": "canary"}, a=FakeNeuron({"m": "loaded"})) as fleet:
        prompt = [{"role": "user", "content": "canary"}]
        assert (await fleet.ask(messages=prompt, headers={"Authorization": "Bearer canary"})).json
        assert b"canary" not in (await fleet.get("/api/fleet")).body


def test_credentials_of_an_endpoint_are_not_shown() -> None:
    (only,) = seen(node("a", endpoint="http://me:secret@host:1")).nodes
    assert only.host == "host:1"


def test_answer_has_every_field_and_nothing_else() -> None:
    answer = msgspec.json.decode(b"".join(pieces(picture(), Ledger(), [], 0, NOW)))
    assert tuple(answer) == Fleet.__struct_fields__
