"""Reloads of a gateway that serves: what holds at once, what is left alone, what goes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from pathlib import Path

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.current import Settings
from cortexd.config.gateway import Config, Loading, Security, Upstream
from cortexd.config.source import ConfigError, Mistake
from cortexd.config.units import Duration, Size
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import FootprintKey
from cortexd.proxy.deadlines import DEFAULT_LIMITS
from tests.fakes import FakeNeuron
from tests.functional.raw import connected, post
from tests.gateway.fleet import FAST, Answer, Fleet, running_fleet
from tests.gateway.reloading import gateway, is_on_disk, neurons, reloaded
from tests.waiting import GUARD, until

JSON = {"Content-Type": "application/json"}


class Slow(FakeNeuron):
    """Its streams end when they are told to."""

    def __init__(self) -> None:
        super().__init__({"m": "loaded"})
        self.goes_on = asyncio.Event()
        self.infer = self._stream

    async def _stream(self, request: web.Request, body: dict[str, object]) -> web.StreamResponse:
        if not body.get("stream"):
            return await self._infer(request, body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await self.goes_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


async def asks_to_reload(fleet: Fleet) -> Answer:
    async with fleet.client.post(fleet.admin_url + "/api/reload", headers=JSON) as response:
        return Answer(response.status, response.headers, await response.read())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


# What holds for the next request.


async def test_catalogue_and_aliases_hold_for_the_next_request() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await fleet.ask("alias")).status == 404
        said = await reloaded(fleet, models=(Profile("new"),), aliases={"alias": "m"})
        assert said.changed == ('models."new" added', 'aliases."alias" added')
        assert (await fleet.ask("alias")).status == 200
        assert (await fleet.ask("new")).headers["x-cortex-route"] == "cold"
        await reloaded(fleet, models=(), aliases={})
        assert (await fleet.ask("alias")).status == 404
        assert (await fleet.get("/v1/models/alias")).status == 404


async def test_limits_hold_for_the_next_request() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await fleet.ask(padding="x" * 1000)
        assert (answer.status, "x-cortex-node" in answer.headers) == (200, True)
        await reloaded(fleet, gateway=gateway(fleet, max_body=Size(500), expose_route=False))
        assert (await fleet.ask(padding="x" * 1000)).status == 413
        answer = await fleet.ask()
        assert (answer.status, "x-cortex-node" in answer.headers) == (200, False)


async def test_new_connections_get_the_time_that_the_largest_body_needs() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        listener = fleet.gateway.listeners["listen"]
        assert listener is not None
        await reloaded(
            fleet, gateway=gateway(fleet, max_body=Size(1 << 30), max_buffered=Size(1 << 30))
        )
        assert listener.server._limits.body_total == 8192
        await reloaded(fleet, gateway=gateway(fleet, max_body=Size(1)))
        assert listener.server._limits == DEFAULT_LIMITS
        moved = gateway(fleet, listen="[::1]:0", max_body=Size(1 << 30), max_buffered=Size(1 << 30))
        await reloaded(fleet, gateway=moved)
        listener = fleet.gateway.listeners["listen"]
        assert listener is not None
        assert listener.server._limits.body_total == 8192


async def test_the_same_file_changes_nothing() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron({"m": "loaded"})) as fleet:
        registry = fleet.gateway.registry
        epoch = registry.snapshot.nodes["a"].epoch
        said = await reloaded(fleet)
        assert (said.status, said.changed, said.restart) == ("unchanged", (), ())
        assert registry.snapshot.nodes["a"].epoch == epoch
        assert registry.snapshot.settled


async def test_what_needs_a_restart_is_named() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        for _ in range(2):  # until it is restarted
            said = await reloaded(fleet, gateway=gateway(fleet, state_dir="/elsewhere"))
            assert (said.status, said.changed) == ("reloaded", ())
            assert said.restart == ("gateway.state_dir",)


# Nodes.


async def test_a_node_that_is_added_is_asked_at_once_and_what_only_it_knows_is_waited_for() -> None:
    new = FakeNeuron({"only-there": "loaded"})
    new.answer_polls.clear()
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet, new.running():
        await reloaded(fleet, neurons=neurons(a=fleet.neurons["a"], b=new))
        asking = asyncio.ensure_future(fleet.ask("only-there"))
        assert (await fleet.ask()).status == 200
        await until(lambda: len(fleet.gateway.table) == 1)
        new.answer_polls.set()
        assert (await asking).headers["x-cortex-node"] == "b"


async def test_a_node_that_is_removed_goes_when_its_answers_have_ended() -> None:
    slow = Slow()
    async with running_fleet(a=slow) as fleet, FakeNeuron({"m": "loaded"}).running() as other:
        registry = fleet.gateway.registry
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(slow.inference) == 1)
        await reloaded(fleet, neurons=neurons(b=other))
        for _ in range(8):
            assert (await fleet.ask()).headers["x-cortex-node"] == "b"
        assert registry.snapshot.nodes["a"].leaving
        slow.goes_on.set()
        assert (await stream).body.endswith(b"data: [DONE]\n\n")
        await until(lambda: "a" not in registry.snapshot.nodes)
        exposition = (await fleet.get("/metrics")).body.decode()
        assert 'node="a"' not in exposition
        assert 'node="b"' in exposition
        assert [node["name"] for node in (await fleet.get("/api/fleet")).json["nodes"]] == ["b"]
        calls, polls = len(slow.calls), len(other.calls)
        await until(lambda: len(other.calls) > polls + 6)
        assert len(slow.calls) == calls
        assert set(fleet.gateway.table._outcomes._seen) == {"b"}


async def test_a_node_that_leaves_can_not_be_put_back_into_service_by_hand() -> None:
    slow = Slow()
    async with running_fleet(a=slow) as fleet:
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(slow.inference) == 1)
        await reloaded(fleet, neurons=())
        fleet.gateway.registry.undrain("a")
        assert not fleet.gateway.registry.snapshot.nodes["a"].is_available
        slow.goes_on.set()
        assert (await stream).status == 200
        await until(lambda: not fleet.gateway.registry.snapshot.nodes)


async def test_a_node_that_comes_back_before_it_is_gone_stays() -> None:
    slow = Slow()
    async with running_fleet(a=slow) as fleet:
        registry = fleet.gateway.registry
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(slow.inference) == 1)
        await reloaded(fleet, neurons=())
        await reloaded(fleet, neurons=neurons(a=slow))
        assert (await fleet.ask()).status == 200
        slow.goes_on.set()
        assert (await stream).status == 200
        await until(lambda: not len(fleet.gateway._roster._tasks))
        assert (await fleet.ask()).status == 200
        assert not registry.ledger.in_flight


async def test_another_endpoint_is_another_node_and_the_old_ones_stream_goes_on() -> None:
    old, new = Slow(), FakeNeuron({"m": "loaded"})
    async with running_fleet(a=old) as fleet, new.running():
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(old.inference) == 1)
        said = await reloaded(fleet, neurons=neurons(a=new))
        assert said.changed == ('neurons."a" changed: endpoint',)
        assert (await fleet.ask()).status == 200  # it waits until the new one has answered
        assert (len(old.inference), len(new.inference)) == (1, 1)
        old.goes_on.set()
        assert (await stream).body.endswith(b"data: [DONE]\n\n")
        assert not fleet.gateway.registry.ledger.in_flight


async def test_another_token_holds_from_the_next_call_on() -> None:
    neuron = FakeNeuron({"m": "loaded"}, token="new")
    async with running_fleet(a=neuron, wait_settled=False, tokens={"a": "old"}) as fleet:
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].polled)
        said = await reloaded(fleet, tokens={"a": "new"})
        assert said.changed == ('neurons."a" has another token',)
        assert (await fleet.ask()).status == 200
        assert neuron.inference_headers[-1]["Authorization"] == "Bearer new"


async def test_a_load_on_a_node_that_is_another_one_now_is_begun_again_there() -> None:
    old, new = FakeNeuron(), FakeNeuron()
    old.release.clear()
    async with running_fleet(Profile("m"), a=old) as fleet, new.running():
        asking = asyncio.ensure_future(fleet.ask())
        await until(lambda: len(fleet.loads("a")) == 1)
        await reloaded(fleet, neurons=neurons(a=new))
        assert (await asking).status == 200
        assert len(new.called("POST", "/models/load")) == 1
        assert not fleet.gateway.registry.ledger.failures


async def test_a_load_goes_on_while_everything_else_changes() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.ensure_future(fleet.ask())
        await until(lambda: len(fleet.loads("a")) == 1)
        loading = Loading(Duration(1000), Duration(9), 1)
        await reloaded(fleet, models=(), aliases={"x": "m"}, loading=loading)
        neuron.release.set()
        assert (await asking).status == 200
        assert len(fleet.loads("a")) == 1


async def test_a_drained_node_stays_drained() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        registry = fleet.gateway.registry
        fleet.gateway._operator.drain("a")
        await reloaded(fleet, aliases={"x": "m"})
        assert registry.snapshot.nodes["a"].draining
        await reloaded(fleet, neurons=())
        await until(lambda: not registry.snapshot.nodes)
        await reloaded(fleet, neurons=neurons(a=fleet.neurons["a"]))
        assert registry.snapshot.nodes["a"].draining


async def test_a_host_that_is_not_allowed_any_more_is_refused_from_the_next_request_on() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    neuron.endpoint_answer = lambda model: web.json_response({"url": "http://192.0.2.1:1"})
    config = Config(
        polling=FAST,
        security=Security(("192.0.2.1",)),
        upstream=Upstream(connect_timeout=Duration(0.05), retries=0),
    )
    async with running_fleet(config=config, a=neuron) as fleet:
        assert (await fleet.ask()).headers["x-cortex-code"].startswith("upstream_")
        await reloaded(fleet, security=Security())
        assert (await fleet.ask()).headers["x-cortex-code"] == "endpoint_refused"


async def test_what_is_known_of_endpoints_outlives_a_reload() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await fleet.ask()).status == 200
        await reloaded(fleet, aliases={"x": "m"})
        assert (await fleet.ask()).status == 200
        assert len(fleet.neurons["a"].called("GET", "/models/m/endpoint")) == 1


# Profiles.


async def fails(body: dict[str, object]) -> web.Response:
    return web.json_response({"error": "no"}, status=500)


async def test_a_changed_profile_is_tried_again_at_once() -> None:
    neuron = FakeNeuron()
    succeeds, neuron.load_answer = neuron.load_answer, fails
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        assert (await fleet.ask()).json["error"]["code"] == "cold_load_failed"
        neuron.load_answer = succeeds
        await reloaded(fleet, aliases={"x": "m"})
        assert (await fleet.ask()).json["error"]["code"] == "cold_load_failed"
        await reloaded(fleet, models=(Profile("m", quant="q4"),))
        assert (await fleet.ask()).status == 200


async def test_a_measurement_holds_as_long_as_the_profile_needs_the_same_memory() -> None:
    async with running_fleet(Profile("m"), a=FakeNeuron()) as fleet:
        footprints = fleet.gateway.registry.ledger.footprints
        key = FootprintKey("m", "llamacpp", None, 1, "a")
        footprints[key] = 500.0
        await reloaded(fleet, models=(Profile("m", capabilities=("chat",)),))
        assert footprints == {key: 500.0}
        await reloaded(fleet, models=(Profile("m", vram_mb=700),))
        assert footprints == {}


# Failures.


def is_broken(fleet: Fleet, *mistakes: str) -> None:
    def read() -> Settings:
        raise ConfigError(
            Path("x.toml"), [Mistake("", text, line) for line, text in enumerate(mistakes, 1)]
        )

    fleet.gateway.reload._read = read


async def test_a_bad_file_changes_nothing_and_says_why_everywhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        before = fleet.gateway._current.config
        is_broken(fleet, "one thing", "another thing")
        answer = await asks_to_reload(fleet)
        assert (answer.status, answer.headers["x-cortex-code"]) == (422, "reload_failed")
        assert "x.toml:1: one thing; x.toml:2: another" in answer.json["error"]["message"]
        assert fleet.gateway._current.config is before
        assert [record.getMessage() for record in caplog.records] == [
            "not reloaded: x.toml:1: one thing",
            "not reloaded: x.toml:2: another thing",
        ]
        words = "not reloaded, the configuration before stays: x.toml:1: one thing (and 1 more)"
        assert (await fleet.get("/health")).json == {"status": "impaired", "reasons": [words]}
        assert fleet.gateway.status == f"1 of 1 nodes up, 1 models, 0 in flight; {words}"
        assert await fleet.metric("cortexd_config_last_reload_success") == 0
        assert (await fleet.ask()).status == 200

        await reloaded(fleet)
        assert (await fleet.get("/health")).json == {"status": "ok", "reasons": []}
        assert await fleet.metric("cortexd_config_last_reload_success") == 1
        assert fleet.gateway.status == "1 of 1 nodes up, 1 models, 0 in flight"


async def test_a_gateway_without_a_file_says_so() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        with pytest.raises(Refusal, match="without a file"):
            await fleet.gateway.reload.reload()


async def test_many_wishes_while_one_waits_are_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_fleet(a=FakeNeuron()) as fleet:
        is_on_disk(fleet, aliases={"x": "m"})
        for _ in range(20):
            fleet.gateway.reload.soon()
        await until(lambda: "x" in fleet.gateway.registry.snapshot.catalogue.aliases)
        is_broken(fleet, "this")
        fleet.gateway.reload.soon()
        await until(lambda: fleet.gateway.reload.trouble is not None)
        said = [record.getMessage() for record in caplog.records]
        assert len([words for words in said if "reloaded: " in words]) == 2


async def test_an_event_tells_of_it() -> None:
    async with (
        running_fleet(a=FakeNeuron()) as fleet,
        fleet.client.get(fleet.url + "/api/events") as stream,
    ):
        await until(lambda: len(fleet.gateway._events._listeners) == 1)
        await reloaded(fleet, aliases={"x": "m"})
        while not (line := await stream.content.readline()).startswith(b"data:"):
            assert line
        event = json.loads(line[5:])
        assert (event["event"], event["message"]) == ("config_reloaded", 'aliases."x" added')


# The operators' listener.


async def test_operators_ask_for_it_and_hear_what_changed() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        is_on_disk(fleet, aliases={"x": "m"})
        answer = await asks_to_reload(fleet)
        assert answer.status == 200
        assert answer.json == {
            "status": "reloaded",
            "changed": ['aliases."x" added'],
            "restart": [],
        }


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Type": "text/plain"}, 415), (JSON | {"Host": "evil.example"}, 403)],
)
async def test_a_page_of_another_origin_can_not_ask_for_it(
    headers: dict[str, str], status: int
) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        is_on_disk(fleet, aliases={"x": "m"})
        url = fleet.admin_url + "/api/reload"
        async with fleet.client.post(url, headers=headers) as response:
            assert response.status == status
        assert "x" not in fleet.gateway._current.config.aliases


# Listeners.


async def test_a_listener_moves_and_streams_on_the_old_one_go_on() -> None:
    slow = Slow()
    async with running_fleet(a=slow) as fleet:
        before, port = fleet.gateway.address, free_port()
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(slow.inference) == 1)
        said = await reloaded(fleet, gateway=gateway(fleet, listen=f"127.0.0.1:{port}"))
        assert said.changed == ("gateway.listen changed",)
        assert fleet.gateway.address == ("127.0.0.1", port)
        async with connected(before) as client:  # for another second
            heard = await client.ask(post(b"{", "Content-Type: application/json"))
            assert (heard.status, heard.is_last) == (400, True)
        async with fleet.client.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
        await until(lambda: _refuses(before))
        slow.goes_on.set()
        assert (await stream).body.endswith(b"data: [DONE]\n\n")
        await until(lambda: len(fleet.gateway.listeners.all) == 2)


def _refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) != 0


async def test_a_listener_that_can_not_be_opened_changes_nothing_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
            before, where = fleet.gateway._current.config, fleet.gateway.address
            elsewhere = gateway(
                fleet,
                listen=f"127.0.0.1:{free_port()}",
                admin_listen=f"127.0.0.1:{taken.getsockname()[1]}",
            )
            is_on_disk(fleet, aliases={"x": "m"}, gateway=elsewhere)
            answer = await asks_to_reload(fleet)
            assert (answer.status, answer.json["error"]["code"]) == (422, "reload_failed")
            assert "[gateway] admin_listen" in answer.json["error"]["message"]
            assert "in use" in answer.json["error"]["message"]
            assert fleet.gateway._current.config is before
            assert fleet.gateway.address == where
            assert (await fleet.ask()).status == 200


async def test_operators_and_metrics_get_and_lose_their_listeners() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        metrics = f"127.0.0.1:{free_port()}"
        await reloaded(fleet, gateway=gateway(fleet, metrics_listen=metrics, admin_listen=""))
        assert fleet.gateway.admin_address == ""
        assert (await fleet.get("/metrics")).status == 404
        async with fleet.client.get(f"http://{metrics}/metrics") as response:
            assert response.status == 200
        again = gateway(fleet, metrics_listen=None, admin_listen="127.0.0.1:0")
        await reloaded(fleet, gateway=again)
        assert (await fleet.get("/metrics")).status == 200
        assert fleet.gateway.admin_address


async def test_a_stop_in_the_middle_of_a_move_ends_both() -> None:
    slow = Slow()
    async with running_fleet(a=slow) as fleet:
        stream = asyncio.ensure_future(fleet.ask(stream=True))
        await until(lambda: len(slow.inference) == 1)
        await reloaded(fleet, gateway=gateway(fleet, listen=f"127.0.0.1:{free_port()}"))
        closing = asyncio.ensure_future(fleet.gateway.close())
        slow.goes_on.set()
        assert (await stream).status == 200
        await closing
        assert not any(listener.server.doors for listener in fleet.gateway.listeners.all)


async def test_a_stop_waits_for_the_reload_that_runs_and_lets_no_other_begin() -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        reload, goes_on = fleet.gateway.reload, threading.Event()
        is_on_disk(fleet, aliases={"x": "m"})
        settings = reload._read and reload._read()

        def read() -> Settings:
            goes_on.wait(GUARD)
            assert settings is not None
            return settings

        reload._read = read
        first = asyncio.ensure_future(reload.reload())
        await until(reload._one.locked)
        second = asyncio.ensure_future(reload.reload())
        closing = asyncio.ensure_future(reload.close())
        await asyncio.sleep(0)
        goes_on.set()
        assert (await first).changed == ('aliases."x" added',)
        with pytest.raises(Refusal, match="shutting down"):
            await second
        await closing
