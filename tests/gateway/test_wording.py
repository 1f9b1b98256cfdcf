"""Sentences of the gateway: the paths they point to, and how they quote a node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from tests.fakes import FakeNeuron
from tests.gateway.dialects import CHAT, engine, infer
from tests.gateway.fleet import Answer, running_fleet
from tests.gateway.kept import loading
from tests.waiting import until


def message(answer: Answer) -> str:
    text: str = answer.json["error"]["message"]
    return text


async def test_quoted_node_words_have_no_double_full_stop() -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "It does not fit."}, status=500)

    def refuse(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "Not now."}, status=500)

    servable = {"ok": False, "reason": "Its engine died.", "detail": "See the log."}
    node = FakeNeuron(
        {"broken": {"id": "broken", "status": "loaded", "servable": servable}, "m": "loaded"}
    )
    node.load_answer, node.unload_answer = fail, refuse
    json = {"Content-Type": "application/json"}
    async with running_fleet(Profile("cold"), a=node) as fleet:
        found = [await fleet.ask("broken"), await fleet.ask("cold")]
        url = fleet.admin_url + "/api/models/m/unload"
        async with fleet.client.post(url, data="{}", headers=json) as response:
            found.append(Answer(response.status, response.headers, await response.read()))
        for answer, words in zip(
            found, ("Its engine died: See the log. ", "It does not fit. ", "Not now. "), strict=True
        ):
            assert answer.status >= 500
            assert words in message(answer)
            assert ".." not in message(answer)
            assert message(answer).endswith(".")
        explained = (await fleet.get("/api/explain?model=broken")).body
        assert b".." not in explained


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/messages/nope", "/v1/messages,"),
        ("/v1/messages/batches", "/v1/messages,"),
        ("/v1/chat/nope", "/v1/chat/completions,"),
        ("/nope", "/v1/chat/completions,"),
    ],
)
async def test_an_unknown_path_points_to_the_paths_of_its_dialect(path: str, place: str) -> None:
    async with running_fleet() as fleet:
        answer = await fleet.ask(path=path)
        assert answer.status == 404
        assert f"inference is at {place}" in message(answer)


async def test_no_model_has_an_empty_name() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        listed = await fleet.get("/v1/models/")
        assert listed.status == 200
        assert listed.json == (await fleet.get("/v1/models")).json
        answer = await fleet.ask("")
        assert (answer.status, answer.json["error"]["code"]) == (400, "missing_model")
        assert answer.json["error"]["param"] == "model"


async def test_keep_alive_after_a_load_says_waiting_instead_of_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thought = asyncio.Event()

    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await thought.wait()
        return await infer(request, body)

    neuron = engine(answer=think)
    neuron.health = {"models": [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]}
    progress = {"stage": "weights", "fraction": 0.99}
    monkeypatch.setattr("cortexd.control.coldload.TICK", 0.01)
    async with loading(neuron) as (fleet, _, client):
        first = asyncio.create_task(fleet.ask())
        try:
            await until(lambda: fleet.gateway.table.waiting() == {"m": 1})
            await client.send(CHAT.request())
            neuron.models["m"] = {"id": "m", "status": "loading", "progress": progress}
            await client.read_until(b": cortexd loading m on a 99%")
            neuron.models["m"] = {"id": "m", "status": "loaded", "progress": progress}
            neuron.release.set()
            await client.read_until(b": cortexd waiting for m")
            await client.read_until(b": cortexd waiting for m")
            (row,) = (await fleet.get("/api/fleet")).json["nodes"][0]["models"]
            assert (row["status"], row["stage"], row["fraction"]) == ("loaded", None, None)
        finally:
            thought.set()
        rest = await client.read_until(CHAT.answer[-5:])
        assert b"99%" not in rest
        assert (await first).status == 200
