from __future__ import annotations

from typing import Any

import msgspec
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Gateway, Loading
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Fleet, running_fleet

PAGE = "https://chat.example"
ALLOWED = "Access-Control-Allow-Origin"
CONFIG = Config(polling=FAST, gateway=Gateway(cors_origins=(PAGE,)))


async def from_page(fleet: Fleet, page: str = PAGE, model: str = "m", **fields: Any) -> Any:
    return await fleet.ask(model, headers={"Origin": page}, **fields)


async def preflight(fleet: Fleet, path: str, page: str = PAGE, **fields: str) -> Any:
    headers = fields | {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    async with fleet.client.options(fleet.url + path, headers=headers) as answer:
        return answer.status, answer.headers


async def test_a_page_that_may_ask_reads_answers_refusals_and_the_models() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=CONFIG) as fleet:
        served = await from_page(fleet)
        refused = await from_page(fleet, model="nope")
        assert (served.status, refused.status) == (200, 404)
        for answer in (served, refused):
            assert answer.headers[ALLOWED] == PAGE
            assert answer.headers.getall("Vary") == ["Origin"]
            assert "x-cortex-node" in answer.headers["Access-Control-Expose-Headers"]
        async with fleet.client.get(fleet.url + "/v1/models", headers={"Origin": PAGE}) as listed:
            assert listed.headers[ALLOWED] == PAGE


async def test_a_browser_may_ask_beforehand() -> None:
    async with running_fleet(config=CONFIG) as fleet:
        status, headers = await preflight(fleet, "/v1/chat/completions")
        assert (status, headers[ALLOWED]) == (204, PAGE)
        assert "POST" in headers["Access-Control-Allow-Methods"]
        wanted = "authorization,content-type,x-stainless-lang"
        assert headers["Access-Control-Allow-Headers"] == wanted
        status, headers = await preflight(fleet, "/v1/completions", "https://evil.example")
        assert (status, ALLOWED in headers) == (403, False)


async def test_preflight_allows_private_network_access() -> None:
    async with running_fleet(config=CONFIG) as fleet:
        asks = {"Access-Control-Request-Private-Network": "true"}
        _, headers = await preflight(fleet, "/v1/models", **asks)
        assert headers["Access-Control-Allow-Private-Network"] == "true"
        _, headers = await preflight(fleet, "/v1/models")
        assert "Access-Control-Allow-Private-Network" not in headers


@pytest.mark.parametrize(
    "page",
    [
        "app://obsidian.md",
        "chrome-extension://abcdef",
        "tauri://localhost",
        "http://localhost:5173",
        "http://localhost",
    ],
)
async def test_origins_of_applications_and_of_any_port_can_be_listed(page: str) -> None:
    listed = ("app://obsidian.md", "chrome-extension://abcdef", "tauri://localhost")
    gateway = Gateway(cors_origins=(*listed, "http://localhost:*"))
    config = Config(polling=FAST, gateway=gateway)
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        status, headers = await preflight(fleet, "/v1/chat/completions", page)
        assert (status, headers[ALLOWED]) == (204, page)
        served = await from_page(fleet, page)
        assert (served.status, served.headers[ALLOWED]) == (200, page)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/health", 200),
        ("GET", "/ready", 503),
        ("GET", "/version", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/api/fleet", 200),
        ("GET", "/api/explain", 400),
        ("GET", "/nope", 404),
        ("PUT", "/v1/chat/completions", 405),
    ],
)
async def test_listed_page_can_read_every_answer(method: str, path: str, status: int) -> None:
    async with running_fleet(config=CONFIG) as fleet:
        assert (await preflight(fleet, path))[0] == 204
        for headers in ({"Origin": PAGE}, {}):
            async with fleet.client.request(method, fleet.url + path, headers=headers) as answer:
                assert answer.status == status
                assert answer.headers.getall("Vary") == ["Origin"]
                assert answer.headers.get(ALLOWED) == headers.get("Origin")


async def test_listed_page_can_read_the_event_stream() -> None:
    async with (
        running_fleet(config=CONFIG) as fleet,
        fleet.client.get(fleet.url + "/api/events", headers={"Origin": PAGE}) as answer,
    ):
        assert (answer.status, answer.headers[ALLOWED]) == (200, PAGE)


async def test_every_answer_says_that_it_depends_on_the_page() -> None:
    """Else a cache would give a page the answer that another client was given."""
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        for answer in (await fleet.ask(), await fleet.ask(stream=True), await fleet.ask("nope")):
            assert answer.headers["Vary"] == "Origin"


async def test_any_page_may_ask_when_that_is_what_is_wanted() -> None:
    config = Config(polling=FAST, gateway=Gateway(cors_origins=("*",)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        assert (await from_page(fleet, "http://any")).headers[ALLOWED] == "*"


@pytest.mark.parametrize("page", ["https://evil.example", "null", PAGE + ".evil", PAGE.upper()])
async def test_no_other_page_may(page: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=CONFIG) as fleet:
        assert ALLOWED not in (await from_page(fleet, page)).headers


async def test_cors_fields_of_a_node_are_dropped() -> None:
    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({}, headers={ALLOWED: "*", "Access-Control-Max-Age": "1"})

    node = FakeNeuron({"m": "loaded"})
    node.infer = infer
    async with running_fleet(a=node) as fleet:
        answer = await fleet.ask(headers={"Sec-Fetch-Site": "none"})
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert (await preflight(fleet, "/v1/chat/completions"))[0] == 403


async def test_a_stream_that_waits_for_its_model_is_readable_too() -> None:
    node = FakeNeuron({})
    node.release.clear()
    config = msgspec.structs.replace(CONFIG, loading=Loading(keepalive=Duration(0.05)))
    async with running_fleet(Profile("m"), config=config, a=node) as fleet:
        body = {"model": "m", "messages": [], "stream": True}
        async with fleet.client.post(
            fleet.url + "/v1/chat/completions", json=body, headers={"Origin": PAGE}
        ) as answer:
            assert answer.status == 200
            assert answer.headers[ALLOWED] == PAGE
            node.release.set()
            await answer.read()
