from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.sanity import sane
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, with_node
from cortexd.gateway import steps
from cortexd.gateway.openai import ModelBook
from cortexd.wire.neuron import Cost, Discovery, Limit, Model
from tests.fakes import FakeNeuron
from tests.fleet import nasty
from tests.fleet.fleet import fleet, node
from tests.gateway.fleet import Fleet, running_fleet
from tests.waiting import until


async def listed(fleet: Fleet) -> dict[str, Any]:
    answer = (await fleet.get("/v1/models")).json
    assert answer["object"] == "list"
    return {card["id"]: card for card in answer["data"]}


async def test_the_list_is_the_catalogue_what_nodes_report_and_the_aliases() -> None:
    profile = Profile(
        "team/m",
        limit=Limit(context=8192),
        cost=Cost(input=0.5, output=0),
        capabilities=("text",),
    )
    reported = {
        "id": "extra",
        "status": "loaded",
        "vram_used_mb": 900,
        "limit": {"context": 2048},
        "tool_call": True,
        "reasoning": False,
    }
    async with running_fleet(
        profile, a=FakeNeuron({"extra": reported}), aliases={"small": "team/m"}
    ) as fleet:
        cards = await listed(fleet)
        assert list(cards) == ["extra", "small", "team/m"]
        created = cards["extra"]["created"]
        assert cards["extra"] == {
            "id": "extra",
            "object": "model",
            "created": created,
            "owned_by": "cortexd",
            "loaded": True,
            "status": "loaded",
            "locations": [{"node": "a", "status": "loaded", "vram_used_mb": 900}],
            "feasible_on": [],
            "limit": {"context": 2048},
            "max_model_len": 2048,
            "context_length": 2048,
            "tool_call": True,
            "reasoning": False,
        }
        assert cards["team/m"] == {
            "id": "team/m",
            "object": "model",
            "created": created,
            "owned_by": "cortexd",
            "loaded": False,
            "status": "unloaded",
            "locations": [],
            "feasible_on": ["a"],
            "capabilities": ["text"],
            "limit": {"context": 8192},
            "max_model_len": 8192,
            "context_length": 8192,
            "cost": {"input": 0.5, "output": 0},
        }
        assert cards["small"] == cards["team/m"] | {"id": "small", "alias_of": "team/m"}
        assert await listed(fleet) == cards


@pytest.mark.parametrize("path", ["/v1/models/team/m", "/v1/models/team%2Fm"])
async def test_one_model_is_found_by_an_id_with_slashes(path: str) -> None:
    async with running_fleet(Profile("team/m"), a=FakeNeuron()) as fleet:
        assert (await fleet.get(path)).json["id"] == "team/m"


async def test_an_unknown_model_is_a_404() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        answer = await fleet.get("/v1/models/nobody")
        assert (answer.status, answer.headers["x-cortex-code"]) == (404, "model_not_found")


async def test_a_node_asleep_does_not_make_the_catalogue_vanish() -> None:
    neuron = FakeNeuron({"known": "loaded"})
    fast = Config(polling=Polling(Duration(0.05), Duration(1), unhealthy_after=1))
    async with running_fleet(Profile("m"), a=neuron, config=fast) as fleet:
        neuron.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.healthy)
        cards = await listed(fleet)
        assert set(cards) == {"known", "m"}
        assert not cards["known"]["loaded"]


async def test_a_load_of_ours_shows_before_a_poll_has_seen_it() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: bool(fleet.loads("a")))
        assert (await listed(fleet))["m"]["status"] == "loading"
        neuron.release.set()
        assert (await asking).status == 200
        assert (await listed(fleet))["m"]["status"] == "loaded"


@pytest.mark.parametrize(
    ("statuses", "shown"),
    [
        (("unloaded", "loaded"), "loaded"),
        (("unloaded", "loading"), "loading"),
        (("recovering", "unloaded"), "recovering"),
        (("failed", "unloaded"), "unloaded"),
        (("failed", "failed"), "failed"),
        (("reloading", "unloaded"), "loaded"),
        (("nonsense", "failed"), "failed"),
    ],
)
async def test_the_status_is_the_best_of_what_nodes_say(
    statuses: tuple[str, str], shown: str
) -> None:
    async with running_fleet(
        a=FakeNeuron({"m": statuses[0]}), b=FakeNeuron({"m": statuses[1]})
    ) as fleet:
        assert (await listed(fleet))["m"]["status"] == shown


@given(nasty.observations())
def test_whatever_a_node_reports_the_list_can_be_read(said: Observation) -> None:
    catalogue = Catalogue.of((Profile("a"),), {"alias": "b"})
    better, _ = sane(said, None)
    one = observed(Node("n", "http://n"), better, catalogue, unhealthy_after=1)
    snapshot = with_node(Snapshot(catalogue=catalogue), one)
    listed = msgspec.json.decode(msgspec.json.encode(ModelBook(0).list(snapshot, Ledger())))
    assert {card["id"] for card in listed["data"]} == {"a", "alias", *one.models}


def crowded(models: int) -> Snapshot:
    """Return a fleet whose node knows that many models."""
    return fleet(node("a", {f"m{number:05}": "unloaded" for number in range(models)}))


async def test_list_is_made_card_by_card() -> None:
    book, snapshot = ModelBook(0), crowded(300)
    pieces = list(book._pieces(snapshot, Ledger()))
    assert len(pieces) == 302
    listed = msgspec.json.encode(book.list(snapshot, Ledger()))
    assert msgspec.json.decode(b"".join(pieces)) == msgspec.json.decode(listed)


async def test_list_is_kept_until_something_in_it_changes() -> None:
    book, snapshot, ledger = ModelBook(0), crowded(3), Ledger()
    assert book.cached(snapshot, ledger) is None
    made = await book.encoded(snapshot, ledger)
    polled = msgspec.structs.replace(snapshot.nodes["a"], health_at=5.0, last_contact=5.0)
    assert book.cached(with_node(snapshot, polled), ledger) is made
    for changes in (
        {"healthy": False},
        {"models": {"m00000": Model("m00000", "loaded")}},
        {"hardware": Discovery([])},
    ):
        other = msgspec.structs.replace(snapshot.nodes["a"], **changes)
        assert book.cached(with_node(snapshot, other), ledger) is None, changes
    other_catalogue = Catalogue.of((Profile("x"),), {})
    assert book.cached(msgspec.structs.replace(snapshot, catalogue=other_catalogue), ledger) is None
    ledger.loading["m00000"] = "a"
    assert book.cached(snapshot, ledger) is None
    ledger.loading.clear()
    assert book.cached(snapshot, ledger) is made
    ledger.unloadable["a", "x"] = "no file"  # a card says where its model can be loaded
    assert book.cached(snapshot, ledger) is None
    ledger.unloadable.clear()
    settled = msgspec.structs.replace(snapshot, settled=not snapshot.settled)
    assert book.cached(settled, ledger) is None  # until then an alias may lead to any node


async def test_list_that_a_load_changed_in_the_making_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "STEP", 0.0)
    book, snapshot, ledger = ModelBook(0), crowded(50), Ledger()
    making = asyncio.create_task(book.encoded(snapshot, ledger))
    await asyncio.sleep(0)
    ledger.loading["m00000"] = "a"
    await making
    assert book.cached(snapshot, ledger) is None
    ledger.loading.clear()
    assert book.cached(snapshot, ledger) is None
