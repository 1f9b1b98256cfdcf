"""The names of models that only their nodes know, over a restart of the gateway."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.units import Duration
from cortexd.control import known_models
from cortexd.control.events import Events
from cortexd.control.known_models import KnownModels
from cortexd.control.registry import Registry
from cortexd.daemon.state import State, StateFile
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Model
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet, running_fleet
from tests.waiting import eventually, until

FOLDED = Config(polling=Polling(interval=Duration(0.05), timeout=Duration(5), unhealthy_after=1))


async def kept(directory: Path) -> State:
    file = StateFile(directory)
    try:
        return await file.open()
    finally:
        await file.close()


async def has_model(fleet: Fleet, node: str, model: str) -> None:
    await until(lambda: model in fleet.gateway.registry.snapshot.nodes[node].models)


async def test_model_of_a_node_that_is_down_since_the_start_is_named_in_a_503(
    tmp_path: Path,
) -> None:
    up, down = FakeNeuron({"m": "loaded"}), FakeNeuron({"only": "loaded", "m": "loaded"})
    async with running_fleet(config=FOLDED, state_dir=tmp_path, up=up, down=down) as fleet:
        await has_model(fleet, "down", "only")
    up, down = FakeNeuron({"m": "loaded"}), FakeNeuron({"only": "loaded"})
    down.unreachable = True
    async with running_fleet(config=FOLDED, state_dir=tmp_path, up=up, down=down) as fleet:
        answer = await fleet.ask("only")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "feasible_node_unhealthy")
        assert answer.headers["Retry-After"] == "3"
        message = answer.json["error"]["message"]
        assert message.startswith("The model 'only' was last listed by a node that has not")
        assert "down (" in message
        assert "up (" not in message
        assert (await fleet.ask("m")).status == 200

        listed = {card["id"]: card for card in (await fleet.get("/v1/models")).json["data"]}
        assert listed["only"]["status"] == "unloaded"
        assert listed["only"]["locations"] == [{"node": "down", "status": "unknown"}]
        assert (await fleet.get("/v1/models/only")).status == 200

        down.unreachable = False
        await eventually(lambda: answers(fleet, "only", 200))


async def answers(fleet: Fleet, model: str, status: int) -> bool:
    return (await fleet.ask(model)).status == status


async def test_unknown_model_may_be_on_a_node_that_has_not_answered_yet() -> None:
    up, down = FakeNeuron({"m": "loaded"}), FakeNeuron({"n": "loaded"})
    down.unreachable = True
    async with running_fleet(config=FOLDED, up=up, down=down) as fleet:
        for answer in (await fleet.ask("what"), await fleet.get("/v1/models/what")):
            assert answer.status == 503
            assert answer.headers["x-cortex-code"] == "feasible_node_unhealthy"
            assert answer.headers["Retry-After"] == "3"
            assert "It may be on a node that has not answered" in answer.json["error"]["message"]
            assert "down (" in answer.json["error"]["message"]
        down.unreachable = False
        await until(lambda: fleet.gateway.registry.snapshot.nodes["down"].healthy)
        assert (await fleet.ask("what")).status == 404
        down.unreachable = True  # once it has answered, what it does not list does not exist
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["down"].healthy)
        assert (await fleet.ask("what")).status == 404
        assert (await fleet.ask("n")).status == 503


async def test_names_are_kept_as_nodes_list_them_now(tmp_path: Path) -> None:
    node = FakeNeuron({"old": "loaded", "listed": "unloaded"})
    async with running_fleet(
        Profile(id="listed"), config=FOLDED, state_dir=tmp_path, a=node
    ) as fleet:
        await has_model(fleet, "a", "old")
        node.models["new"] = "loaded"
        del node.models["old"]
        await has_model(fleet, "a", "new")
    assert (await kept(tmp_path)).models == {"a": ("new",)}
    async with running_fleet(config=FOLDED, state_dir=tmp_path, b=FakeNeuron({"x": "loaded"})):
        pass
    assert (await kept(tmp_path)).models == {"b": ("x",)}  # a is not configured any more


async def test_names_that_are_kept_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_models, "MAX_MODELS", 3)
    monkeypatch.setattr(known_models, "MAX_BYTES", 5 * len('"m0",'))
    crowd = {f"m{number}": "unloaded" for number in range(10)} | {"x" * 600: "unloaded"}
    async with running_fleet(
        config=FOLDED, state_dir=tmp_path, a=FakeNeuron(crowd), b=FakeNeuron(crowd)
    ) as fleet:
        await has_model(fleet, "a", "m9")
        await has_model(fleet, "b", "m9")
    names = (await kept(tmp_path)).models
    assert sorted(map(len, names.values())) == [2, 3]
    assert all(name in crowd and len(name) < 600 for its in names.values() for name in its)


async def test_names_as_long_as_nodes_like_leave_the_file_readable(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    await file.open()
    nodes = [Node(f"n{number}", "http://x") for number in range(10)]
    registry = Registry(nodes, Catalogue(), Events(), unhealthy_after=1)
    registry.watchers.append(KnownModels(registry, file).observed)
    for node in nodes:
        models = [Model("模" * 508 + f"{number:04}", "loaded") for number in range(1000)]
        registry.observe(node.name, Observation(0.0, 0.1, models=models))
    file.put(msgspec.structs.replace(file.state, drained=("n0",)))
    await file.close()
    found = await kept(tmp_path)
    assert found.drained == ("n0",)
    assert len(found.models["n0"]) > 100


async def test_model_that_leaves_the_catalogue_is_kept(tmp_path: Path) -> None:
    config = msgspec.structs.replace(FOLDED, models=(Profile("m"),))
    node = FakeNeuron({"m": "loaded"})
    async with running_fleet(config=config, state_dir=tmp_path, a=node) as fleet:
        await has_model(fleet, "a", "m")
        assert fleet.gateway._state.state.models == {}
        registry = fleet.gateway.registry
        registry.reconfigure(
            registry.snapshot.nodes.values(),
            Catalogue(),
            fresh=(),
            unhealthy_after=1,
            policy=registry.snapshot.policy,
        )
        await until(lambda: fleet.gateway._state.state.models == {"a": ("m",)})


async def test_poll_that_changes_no_name_writes_nothing(tmp_path: Path) -> None:
    node = FakeNeuron({"m": {"id": "m", "status": "loaded", "vram_used_mb": 1}})
    async with running_fleet(config=FOLDED, state_dir=tmp_path, a=node) as fleet:
        state = fleet.gateway._state.state
        assert state.models == {"a": ("m",)}
        node.models["m"] = {"id": "m", "status": "loaded", "vram_used_mb": 2}
        await until(
            lambda: fleet.gateway.registry.snapshot.nodes["a"].models["m"].vram_used_mb == 2
        )
        assert fleet.gateway._state.state is state
