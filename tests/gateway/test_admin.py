"""The operators' listener: what it serves, what it refuses, and who may use it."""

from __future__ import annotations

import asyncio
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Polling
from cortexd.config.gateway import Gateway as GatewayConfig
from cortexd.config.units import Duration
from cortexd.gateway.app import FEW_CONNECTIONS, Gateway
from cortexd.gateway.listeners import CantListen
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Answer, Fleet, running_fleet, until

JSON = {"Content-Type": "application/json"}


async def post(
    fleet: Fleet, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    """One POST to the operators' listener."""
    async with fleet.client.post(
        fleet.admin_url + path,
        data=b"" if body is None else msgspec.json.encode(body),
        headers=JSON if headers is None else headers,
    ) as response:
        return Answer(response.status, response.headers, await response.read())


async def fails(body: dict[str, Any]) -> web.Response:
    return web.json_response({"error": "the disk is full"}, status=500)


# Who may.


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/ready",
        "/version",
        "/metrics",
        "/v1/models",
        "/api/fleet",
        "/api/explain?model=m",
    ],
)
async def test_the_same_reads_are_there(path: str) -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        fleet.client.get(fleet.admin_url + path) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    "path", ["models/m/load", "models/m/unload", "nodes/a/drain", "nodes/a/undrain"]
)
async def test_what_changes_something_is_never_on_the_public_listener(path: str) -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron()) as fleet:
        answer = await fleet.ask(path=f"/api/{path}")
        assert (answer.status, answer.headers["x-cortex-code"]) == (404, "unknown_route")
        assert fleet.loads("a") == []
        assert not fleet.gateway.registry.snapshot.nodes["a"].draining


async def test_inference_is_not_on_the_operators_listener() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await post(fleet, "/v1/chat/completions", b"{}")).status == 404


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8081", True),
        ("[::1]", True),
        ("10.0.0.7", True),
        ("LocalHost:1", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example:127", False),
        ("gateway:8081", True),
        ("gateway.lan", True),
    ],
)
async def test_only_a_host_that_nobody_can_point_elsewhere(host: str, allowed: bool) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await post(fleet, "/api/models/m/load", headers=JSON | {"Host": host})
        if allowed:
            assert answer.status == 200
        else:
            # Some never get so far: they are no Host at all.
            assert (answer.status, answer.headers["x-cortex-code"]) in {
                (403, "forbidden_host"),
                (400, "bad_request"),
            }


async def test_the_host_that_is_configured_is_one() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), admin_listen="localhost:0") as fleet:
        assert (await post(fleet, "/api/models/m/load")).status == 200


@pytest.mark.parametrize("path", ["/api/models/m/load", "/api/nodes/a/drain"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_which_a_page_of_another_origin_cannot_send(kind: str, path: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await post(fleet, path, headers={"Content-Type": kind})
        assert (answer.status, answer.json["error"]["code"]) == (415, "unsupported_media_type")
        assert not fleet.gateway.registry.snapshot.nodes["a"].draining


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/models/m/load", b"{", 400, "invalid_json"),
        ("/api/models/m/load", b"[]", 400, "invalid_value"),
        ("/api/models/m/load", b'{"node":1}', 400, "invalid_value"),
        ("/api/models/m/load", b'{"nodes":"a"}', 400, "invalid_value"),
        ("/api/models/m/load", b'{"node":"%b"}' % bytes(70_000).hex().encode(), 413, None),
        ("/api/models/m/load", b'{"node":"c"}', 404, "unknown_node"),
        ("/api/models/m/unload", b'{"node":"c"}', 404, "unknown_node"),
        ("/api/models/x/load", b"", 404, "model_not_found"),
        ("/api/models/x/load", b'{"node":"a"}', 404, "model_not_found"),
        ("/api/models/x/unload", b"", 404, "model_not_found"),
        ("/api/models/m/reload", b"", 404, "unknown_route"),
        ("/api/models/load", b"", 404, "unknown_route"),
        ("/api/nodes/c/drain", b"", 404, "unknown_node"),
        ("/api/nodes/c/undrain", b"", 404, "unknown_node"),
        ("/api/nodes/a/drain", b'{"force":true}', 400, "invalid_value"),
        ("/api/nodes/a/load", b"", 404, "unknown_route"),
        ("/api/nodes/drain", b"", 404, "unknown_route"),
        ("/api/models/m/drain", b"", 404, "unknown_route"),
    ],
)
async def test_what_is_not_understood_is_refused(
    path: str, body: bytes, status: int, code: str | None
) -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"}), b=FakeNeuron()) as fleet,
        fleet.client.post(fleet.admin_url + path, data=body, headers=JSON) as response,
    ):
        assert response.status == status
        error = (await response.json())["error"]
        assert error["code"] == (code or "request_too_large")
        if code == "unknown_node":
            assert "there is a, b" in error["message"]


async def test_a_load_is_a_post() -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        fleet.client.get(fleet.admin_url + "/api/models/m/load") as response,
    ):
        assert response.status == 405


# Loading.


@pytest.mark.parametrize("path", ["/api/models/org%2Fm/load", "/api/models/org/m/load"])
async def test_a_model_of_the_catalogue_is_loaded_and_then_served(path: str) -> None:
    async with running_fleet(Profile("org/m"), a=FakeNeuron()) as fleet:
        answer = await post(fleet, path)
        assert answer.status == 200
        assert answer.json == {"status": "loaded", "node": "a", "seconds": answer.json["seconds"]}
        assert [body["model_id"] for body in fleet.loads("a")] == ["org/m"]
        served = await fleet.ask("org/m")
        assert served.headers["x-cortex-route"] == "loaded"


async def test_what_is_loaded_is_loaded_at_once() -> None:
    async with running_fleet(
        Profile("m"), aliases={"alias": "m"}, a=FakeNeuron(), b=FakeNeuron({"m": "loaded"})
    ) as fleet:
        answer = await post(fleet, "/api/models/alias/load")
        assert answer.json == {"status": "loaded", "node": "b", "seconds": 0.0}
        assert (fleet.loads("a"), fleet.loads("b")) == ([], [])


async def test_the_node_that_is_named_is_where_it_goes() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron({"m": "loaded"}), b=FakeNeuron()) as fleet:
        assert (await post(fleet, "/api/models/m/load", {"node": "b"})).json["node"] == "b"
        assert (len(fleet.loads("a")), len(fleet.loads("b"))) == (0, 1)


async def test_a_node_that_can_never_hold_it_says_why() -> None:
    async with running_fleet(Profile("m", vram_mb=99_000), a=FakeNeuron(), b=FakeNeuron()) as fleet:
        answer = await post(fleet, "/api/models/m/load", {"node": "b"})
        assert (answer.status, answer.json["error"]["code"]) == (422, "no_feasible_neuron")
        assert "1 device of 99000 MiB or more needed" in answer.json["error"]["message"]
        assert fleet.loads("b") == []


async def test_a_model_that_a_node_knows_unloaded_is_loaded_as_the_node_has_it() -> None:
    known = {"id": "m", "status": "unloaded", "harness": "vllm", "devices": [0]}
    async with running_fleet(a=FakeNeuron(), b=FakeNeuron({"m": known})) as fleet:
        assert (await post(fleet, "/api/models/m/load")).json["node"] == "b"
        (asked,) = fleet.loads("b")
        assert (asked["model_id"], asked["harness"], asked["devices"]) == ("m", "vllm", [0])


async def test_an_operator_and_requests_share_one_load() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: len(fleet.loads("a")) == 1)
        operating = asyncio.create_task(post(fleet, "/api/models/m/load"))
        named = asyncio.create_task(post(fleet, "/api/models/m/load", {"node": "a"}))
        await until(lambda: len(fleet.gateway.listeners.all[-1].server.doors) == 2)
        neuron.release.set()
        assert {(await it).status for it in (asking, operating, named)} == {200}
        assert len(fleet.loads("a")) == 1


async def test_a_failed_load_is_told_in_the_nodes_words_and_the_next_one_is_tried() -> None:
    first, second = FakeNeuron(), FakeNeuron()
    first.load_answer = fails
    async with running_fleet(Profile("m"), a=first, b=second) as fleet:
        assert (await post(fleet, "/api/models/m/load")).json["node"] == "b"
        answer = await post(fleet, "/api/models/m/load", {"node": "a"})
        assert (answer.status, answer.json["error"]["code"]) == (502, "cold_load_failed")
        assert "a says" in answer.json["error"]["message"]
        assert "the disk is full" in answer.json["error"]["message"]


async def test_an_operator_need_not_wait_for_the_back_off() -> None:
    neuron = FakeNeuron()
    succeeds, neuron.load_answer = neuron.load_answer, fails
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        assert (await fleet.ask()).status == 502
        assert (await fleet.ask()).status == 502
        assert len(fleet.loads("a")) == 1
        neuron.load_answer = succeeds
        assert (await post(fleet, "/api/models/m/load")).status == 200


async def test_an_operator_that_leaves_does_not_cancel_the_load() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        leaving = asyncio.create_task(post(fleet, "/api/models/m/load"))
        await until(lambda: len(fleet.loads("a")) == 1)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await until(lambda: not fleet.gateway.listeners.all[-1].server.doors)
        neuron.release.set()
        await until(lambda: fleet.gateway.table.entry("m") is None)
        assert fleet.gateway.registry.replica("a", "m").status == "loaded"  # type: ignore[union-attr]


async def test_a_stop_tells_an_operator_at_once() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        operating = asyncio.create_task(post(fleet, "/api/models/m/load"))
        await until(lambda: len(fleet.loads("a")) == 1)
        closing = asyncio.create_task(fleet.gateway.close())
        answer = await operating
        assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")
        await closing


# Unloading.


async def test_it_is_unloaded_wherever_it_is_and_the_picture_says_so_at_once() -> None:
    slow = Config(polling=Polling(interval=Duration(60)))
    neurons = {name: FakeNeuron({"m": "loaded"}) for name in "ab"}
    async with running_fleet(config=slow, c=FakeNeuron({"m": "unloaded"}), **neurons) as fleet:
        answer = await post(fleet, "/api/models/m/unload")
        assert answer.json == {"status": "unloaded", "nodes": ["a", "b"]}
        replicas = fleet.gateway.registry.snapshot.replicas["m"]
        assert {replica.status for replica in replicas} == {"unloaded"}
        for name in "ab":
            asked = fleet.neurons[name].called("POST", "/models/unload")
            assert asked == [{"model_id": "m", "if_idle": True}]
            polls = fleet.neurons[name].called
            await until(lambda polls=polls: len(polls("GET", "/models")) == 2)  # type: ignore[misc]
        assert (await post(fleet, "/api/models/m/unload")).json["nodes"] == []


async def test_only_the_named_node_unloads_it() -> None:
    neurons = {name: FakeNeuron({"m": "loaded"}) for name in "ab"}
    async with running_fleet(**neurons) as fleet:
        answer = await post(fleet, "/api/models/m/unload", {"node": "b"})
        assert answer.json["nodes"] == ["b"]
        assert fleet.neurons["a"].called("POST", "/models/unload") == []


async def test_a_load_of_ours_is_cancelled_and_its_waiters_are_told() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        operating = asyncio.create_task(post(fleet, "/api/models/m/load"))
        await until(lambda: sum(fleet.gateway.table.waiting().values()) == 1)
        await until(lambda: len(fleet.gateway.listeners.all[-1].server.doors) == 1)
        assert (await post(fleet, "/api/models/m/unload")).json["nodes"] == ["a"]
        for answer in (await asking, await operating):
            assert (answer.status, answer.headers["x-cortex-code"]) == (502, "cold_load_failed")
            assert "cancelled by an operator" in answer.json["error"]["message"]
        assert neuron.called("POST", "/models/unload") == [{"model_id": "m", "if_idle": None}]
        assert not fleet.gateway.registry.ledger.loading
        assert not fleet.gateway.registry.ledger.failures
        assert await fleet.metric("cortexd_loads_total", model="m", result="cancelled") == 1


async def test_one_at_work_is_left_alone_unless_it_is_forced() -> None:
    neuron, answering = FakeNeuron({"m": "loaded"}), asyncio.Event()
    infer = neuron.infer

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await answering.wait()
        return await infer(request, body)

    neuron.infer = slowly
    async with running_fleet(a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: len(neuron.inference) == 1)
        answer = await post(fleet, "/api/models/m/unload")
        assert (answer.status, answer.json["error"]["code"]) == (409, "busy")
        assert neuron.called("POST", "/models/unload") == []
        answer = await post(fleet, "/api/models/m/unload", {"force": True})
        assert answer.json["nodes"] == ["a"]
        assert neuron.called("POST", "/models/unload") == [{"model_id": "m", "if_idle": None}]
        answering.set()
        assert (await asking).status == 200


@pytest.mark.parametrize(
    ("status", "code", "becomes"),
    [(409, "busy", (409, "busy")), (500, None, (502, "unload_failed")), (404, None, (200, None))],
)
async def test_what_the_node_says_to_an_unload(
    status: int, code: str | None, becomes: tuple[int, str | None]
) -> None:
    first, second = FakeNeuron({"m": "loaded"}), FakeNeuron({"m": "loaded"})
    first.unload_answer = lambda body: web.json_response(
        {"error": "says the node", "code": code}, status=status
    )
    async with running_fleet(a=first, b=second) as fleet:
        answer = await post(fleet, "/api/models/m/unload")
        assert (answer.status, answer.headers.get("x-cortex-code")) == becomes
        if answer.status != 200:
            assert "says the node" in answer.json["error"]["message"]
            assert answer.json["error"]["message"].endswith("It was unloaded on b.")


# Draining.


async def test_a_drained_node_finishes_what_runs_and_gets_nothing_new(tmp_path: Path) -> None:
    a, answering = FakeNeuron({"m": "loaded"}), asyncio.Event()
    infer = a.infer

    async def slowly(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await answering.wait()
        return await infer(request, body)

    a.infer = slowly
    async with running_fleet(a=a, state_dir=tmp_path) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: len(a.inference) == 1)
        answer = await post(fleet, "/api/nodes/a/drain", {})
        assert answer.json == {"node": "a", "draining": True, "in_flight": 1}
        refused = await fleet.ask()
        assert refused.headers["x-cortex-code"] == "feasible_node_unhealthy"
        assert "a, which is draining" in refused.json["error"]["message"]
        answering.set()
        assert (await asking).status == 200
        answer = await post(fleet, "/api/nodes/a/undrain")
        assert answer.json == {"node": "a", "draining": False, "in_flight": 0}
        assert (await fleet.ask()).status == 200


@pytest.mark.parametrize("verb", ["drain", "undrain"])
async def test_drain_that_can_not_be_kept_says_so(tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with running_fleet(a=FakeNeuron(), state_dir=tmp_path / "file/below") as fleet:
        note = (await post(fleet, f"/api/nodes/a/{verb}", {})).json["note"]
        assert note.startswith("A restart of the gateway forgets this: ")
        assert "Not a directory" in note
        assert "set [gateway] state_dir" in note
        health = (await fleet.get("/health")).json
        assert health["status"] == "impaired"
        assert "can't be written: Not a directory" in health["reasons"][0]


async def test_nothing_is_loaded_on_a_drained_node() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron(), b=FakeNeuron()) as fleet:
        await post(fleet, "/api/nodes/a/drain")
        assert (await fleet.ask()).headers["x-cortex-node"] == "b"
        answer = await post(fleet, "/api/models/m/load", {"node": "a"})
        assert answer.json["error"]["code"] == "feasible_node_unhealthy"
        assert fleet.loads("a") == []


async def test_who_waits_for_a_load_on_a_node_that_is_drained_goes_elsewhere() -> None:
    a, b = FakeNeuron(), FakeNeuron()
    a.release.clear()
    async with running_fleet(Profile("m"), a=a, b=b) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await until(lambda: len(fleet.loads("a")) == 1)
        await post(fleet, "/api/nodes/a/drain")
        a.release.set()
        answer = await asking
        assert (answer.status, answer.headers["x-cortex-node"]) == (200, "b")
        assert a.inference == []


async def test_a_drain_outlives_a_restart_and_so_does_its_end(tmp_path: Path) -> None:
    for act, drained in (("drain", True), ("undrain", False)):
        async with running_fleet(state_dir=tmp_path, a=FakeNeuron(), b=FakeNeuron()) as fleet:
            await post(fleet, f"/api/nodes/a/{act}")
        async with running_fleet(state_dir=tmp_path, a=FakeNeuron(), b=FakeNeuron()) as fleet:
            nodes = fleet.gateway.registry.snapshot.nodes
            assert (nodes["a"].draining, nodes["b"].draining) == (drained, False)


async def test_a_drained_node_that_is_not_configured_for_a_while_stays_drained(
    tmp_path: Path,
) -> None:
    async with running_fleet(state_dir=tmp_path, a=FakeNeuron()) as fleet:
        await post(fleet, "/api/nodes/a/drain")
    async with running_fleet(state_dir=tmp_path, b=FakeNeuron()) as fleet:
        await post(fleet, "/api/nodes/b/drain")
    async with running_fleet(state_dir=tmp_path, a=FakeNeuron(), b=FakeNeuron()) as fleet:
        assert all(node.draining for node in fleet.gateway.registry.snapshot.nodes.values())


async def test_a_node_may_have_any_name() -> None:
    async with running_fleet(**{"rack 1/ü": FakeNeuron()}) as fleet:
        answer = await post(fleet, "/api/nodes/rack%201%2F%C3%BC/drain")
        assert answer.json["node"] == "rack 1/ü"


# Where.


async def test_it_can_be_turned_off() -> None:
    async with running_fleet(admin_listen="") as fleet:
        assert fleet.gateway.admin_address == ""
        assert len(fleet.gateway.listeners.all) == 1


async def test_it_has_few_connections_of_its_own() -> None:
    async with running_fleet() as fleet:
        host, _, port = fleet.gateway.admin_address.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(FEW_CONNECTIONS)]
        reader, writer = await asyncio.open_connection(host, int(port))
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        assert (await fleet.get("/health")).status == 200
        for _, each in [*held, (reader, writer)]:
            each.close()
            await each.wait_closed()


async def test_a_socket_file_is_for_its_owner_and_group_and_a_stale_one_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "admin.sock"
    for _ in range(2):  # the second time the file of the first is there
        async with (
            running_fleet(a=FakeNeuron({"m": "loaded"}), admin_listen=f"unix:{path}") as fleet,
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        ):
            assert fleet.gateway.admin_address == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            async with client.post("http://localhost/api/models/m/load", json={}) as response:
                assert response.status == 200


async def test_a_socket_file_that_is_in_use_or_no_socket_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "admin.sock", tmp_path / "precious"
    other.write_text("data")
    async with running_fleet(admin_listen=f"unix:{path}"):
        for taken in (path, other):
            gateway = GatewayConfig(listen="127.0.0.1:0", admin_listen=f"unix:{taken}")
            with pytest.raises(CantListen, match=r"admin_listen\).*in use"):
                await Gateway(Config(gateway=gateway)).start()
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
            client.get("http://localhost/version") as response,
        ):
            assert response.status == 200
    assert other.read_text() == "data"
