"""Responses that engines keep: each is asked for, and continued, at the node that made it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config
from cortexd.gateway import stored_responses
from cortexd.wire.neuron import LOADED
from cortexd.wire.responses import continued_response, response_id
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Answer, Fleet, running_fleet
from tests.waiting import GUARD, until


class Engine(FakeNeuron):
    """Keeps its responses in memory, as vLLM and LM Studio do. Streams go on when told to."""

    def __init__(self, name: str) -> None:
        super().__init__({"m": LOADED})
        self.name = name
        self.kept: dict[str, dict[str, Any]] = {}
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.infer = self._respond

    async def _respond(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        path = request.path.removeprefix("/v1/responses")
        if path:
            return self._item(request, path[1:])
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.kept:
            error = {"message": f"Response with id '{previous}' not found.", "code": 404}
            return web.json_response({"error": error}, status=404)
        response = {"id": f"resp_{self.name}{len(self.kept)}", "object": "response", "output": []}
        self.kept[response["id"]] = response | {"status": "completed"}
        if not body.get("stream"):
            return web.json_response(self.kept[response["id"]])
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(event("response.created", response | {"status": "in_progress"}))
        await self.goes_on.wait()
        await answer.write(event("response.completed", self.kept[response["id"]]))
        return answer

    def _item(self, request: web.Request, path: str) -> web.Response:
        response, _, action = path.partition("/")
        if response not in self.kept:
            return web.json_response({"error": {"message": "gone"}}, status=404)
        if request.method == "DELETE":
            del self.kept[response]
            return web.json_response({"id": response, "deleted": True})
        if action == "cancel":
            self.goes_on.set()
            return web.json_response(self.kept[response] | {"status": "cancelled"})
        if action == "input_items":
            return web.json_response({"object": "list", "data": [], "query": request.query_string})
        return web.json_response(self.kept[response])


def event(kind: str, response: dict[str, Any]) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": 0, "response": response})
    return f"event: {kind}\ndata: {data}\n\n".encode()


def pair() -> dict[str, FakeNeuron]:
    return {"a": Engine("a"), "b": Engine("b")}


async def send(fleet: Fleet, method: str, path: str, **options: Any) -> Answer:
    async with fleet.client.request(method, fleet.url + path, **options) as response:
        return Answer(response.status, response.headers, await response.read())


async def make(fleet: Fleet, text: str, **fields: Any) -> Answer:
    return await send(fleet, "POST", "/v1/responses", json={"model": "m", "input": text} | fields)


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation_continues_where_it_began(stream: bool) -> None:
    async with running_fleet(**pair()) as fleet:
        nodes = set()
        for turn in range(12):
            first = await make(fleet, f"conversation {turn}", stream=stream)
            nodes.add(first.headers["x-cortex-node"])
            response = response_id(first.body)
            second = await make(fleet, "and then?", previous_response_id=response, stream=stream)
            assert second.status == 200, second.body
            assert second.headers["x-cortex-node"] == first.headers["x-cortex-node"]
        assert nodes == {"a", "b"}


async def test_response_is_asked_for_at_its_node() -> None:
    async with running_fleet(**pair()) as fleet:
        made = [await make(fleet, f"conversation {turn}") for turn in range(6)]
        for answer in made:
            response, node = answer.json["id"], answer.headers["x-cortex-node"]
            path = f"/v1/responses/{response}"
            found = await send(fleet, "GET", path)
            assert (found.status, found.json["id"]) == (200, response)
            assert found.headers["x-cortex-node"] == node
            assert (await send(fleet, "GET", path + "/")).status == 200
            items = await send(fleet, "GET", f"{path}/input_items?limit=3")
            assert (items.status, items.json["query"]) == (200, "limit=3")
            cancelled = await send(fleet, "POST", f"{path}/cancel")
            assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
            assert (await send(fleet, "DELETE", path)).json["deleted"]
            gone = await send(fleet, "GET", path)
            assert (gone.status, gone.json["error"]["message"]) == (404, "gone")  # the node's own
        labels = {"path": "/v1/responses/{id}", "model": "m"}
        assert await fleet.metric("cortexd_requests_total", status="200", **labels) == 30
        assert await fleet.metric("cortexd_requests_total", status="404", **labels) == 6
        assert await fleet.metric("cortexd_usage_missing_total") == 6  # of those that made them


async def test_stream_under_way_can_be_cancelled() -> None:
    nodes = pair()
    for node in nodes.values():
        assert isinstance(node, Engine)
        node.goes_on.clear()
    async with (
        running_fleet(**nodes) as fleet,
        asyncio.timeout(GUARD),
        fleet.client.post(
            f"{fleet.url}/v1/responses", json={"model": "m", "input": "hi", "stream": True}
        ) as stream,
    ):
        response = response_id(await stream.content.readuntil(b"\n\n"))
        cancelled = await send(fleet, "POST", f"/v1/responses/{response}/cancel")
        assert cancelled.status == 200
        assert cancelled.headers["x-cortex-node"] == stream.headers["x-cortex-node"]
        assert b"response.completed" in await stream.read()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/responses/resp_unknown", 404, "response_not_found"),
        ("DELETE", "/v1/responses/resp_unknown", 404, "response_not_found"),
        ("POST", "/v1/responses/resp_unknown/cancel", 404, "response_not_found"),
        ("GET", "/v1/responses/resp_unknown/what", 404, "unknown_route"),
        ("POST", "/v1/responses/resp_unknown", 405, "method_not_allowed"),
        ("GET", "/v1/responses/resp_unknown/cancel", 405, "method_not_allowed"),
        ("PUT", "/v1/responses/resp_unknown", 405, "method_not_allowed"),
    ],
)
async def test_response_that_no_node_is_known_to_have(
    method: str, path: str, status: int, code: str
) -> None:
    async with running_fleet(**pair()) as fleet:
        answer = await send(fleet, method, path)
        assert (answer.status, answer.headers["x-cortex-code"]) == (status, code)
        if status == 405:
            assert answer.headers["Allow"].endswith(", OPTIONS")
        if code == "response_not_found":
            assert "does not know which node has" in answer.json["error"]["message"]
        exposition = (await fleet.get("/metrics")).body
        assert b"resp_unknown" not in exposition  # no series for a name that was made up


async def test_response_of_a_node_that_is_down_is_refused_with_its_name() -> None:
    node = Engine("a")
    async with running_fleet(config=Config(polling=FAST), a=node) as fleet:
        response = (await make(fleet, "hi")).json["id"]
        node.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["a"].healthy)
        answer = await send(fleet, "GET", f"/v1/responses/{response}")
        assert (answer.status, answer.headers["x-cortex-code"]) == (503, "feasible_node_unhealthy")
        assert "on the node a, which is unhealthy" in answer.json["error"]["message"]
        node.unreachable = False
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].healthy)
        assert (await send(fleet, "GET", f"/v1/responses/{response}")).status == 200


async def test_response_whose_model_is_gone_loads_nothing() -> None:
    node = Engine("a")
    async with running_fleet(Profile(id="m"), a=node) as fleet:
        response = (await make(fleet, "hi")).json["id"]
        del node.models["m"]
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["a"].models)
        answer = await send(fleet, "GET", f"/v1/responses/{response}")
        assert (answer.status, answer.headers["x-cortex-code"]) == (404, "response_not_found")
        assert "does not have the model 'm' loaded any more" in answer.json["error"]["message"]
        assert not fleet.loads("a")


async def test_conversation_goes_on_elsewhere_when_its_node_serves_the_model_no_more() -> None:
    """That node's answer says what is to be done: the caller sends the conversation again."""
    nodes = pair()
    async with running_fleet(**nodes) as fleet:
        first = await make(fleet, "hi")
        home = first.headers["x-cortex-node"]
        del nodes[home].models["m"]
        await until(lambda: not fleet.gateway.registry.snapshot.nodes[home].models)
        second = await make(fleet, "more", previous_response_id=first.json["id"])
        assert second.status == 404
        assert second.headers["x-cortex-node"] != home
        assert "not found" in second.json["error"]["message"]


async def test_drained_node_still_serves_its_stored_responses() -> None:
    async with running_fleet(**pair()) as fleet:
        made = await make(fleet, "hi")
        fleet.gateway.registry.drain(made.headers["x-cortex-node"])
        assert (await send(fleet, "GET", f"/v1/responses/{made.json['id']}")).status == 200


async def test_busy_node_of_a_response_is_not_replaced_by_another() -> None:
    nodes = pair()
    async with running_fleet(**nodes) as fleet:
        first = await make(fleet, "hi")
        node = nodes[first.headers["x-cortex-node"]]

        async def busy(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            return web.json_response({"error": "busy"}, status=429, headers={"Retry-After": "2"})

        node.infer = busy
        second = await make(fleet, "more", previous_response_id=first.json["id"])
        assert (second.status, second.headers["Retry-After"]) == (429, "2")


async def test_ids_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_responses, "MAX_RESPONSES", 3)
    async with running_fleet(**pair()) as fleet:
        made = [(await make(fleet, str(turn))).json["id"] for turn in range(3)]
        assert (await send(fleet, "GET", f"/v1/responses/{made[0]}")).status == 200
        made.append((await make(fleet, "one more")).json["id"])
        statuses = [(await send(fleet, "GET", f"/v1/responses/{each}")).status for each in made]
        assert statuses == [200, 404, 200, 200]  # the one that was used last stayed
        assert len(fleet.gateway._relay._stored) == 3


async def test_failed_answers_leave_nothing_behind() -> None:
    node = Engine("a")

    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"id": "resp_x", "error": {"message": "no"}}, status=500)

    node.infer = fail
    async with running_fleet(a=node) as fleet:
        assert (await make(fleet, "hi")).status == 500
        stored = fleet.gateway._relay._stored
        assert not len(stored)
        assert not stored._unread


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b'{"id":"resp_1","object":"response"}', "resp_1"),
        (b'{"object":"response","created_at":1,"id" : "resp_abc-1"', "resp_abc-1"),
        (b'{"conversation":{"id":"conv_1"},"id":"resp_2"}', "resp_2"),
        (b'{"id":"0196-uuid"}', "0196-uuid"),
        (event("response.created", {"id": "resp_3"}), "resp_3"),
        (event("response.created", {"id": "0196"}), "0196"),
        (b'{"previous_response_id":"resp_old","id":"resp_new"}', "resp_new"),
        (b'{"instructions":"say \\"id\\":\\"resp_evil\\"","id":"resp_new"}', "resp_new"),
        (b'{"id":"' + b"x" * 300 + b'"}', None),
        (b"", None),
        (b"data: [DONE]", None),
    ],
)
def test_id_of_a_response_is_found_in_its_first_bytes(head: bytes, expected: str | None) -> None:
    assert response_id(head) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m","previous_response_id":"resp_1"}', "resp_1"),
        (b'{"model":"m","previous_response_id":null}', None),
        (b'{"model":"m","previous_response_id":7}', None),
        (b'{"model":"m","input":"\\"previous_response_id\\": \\"resp_2\\""}', None),
        (b'{"model":"m"}', None),
        (b'"previous_response_id"', None),
    ],
)
def test_previous_response_id_is_read_from_a_request(body: bytes, expected: str | None) -> None:
    assert continued_response(body) == expected
