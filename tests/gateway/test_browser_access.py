"""Requests of web pages at each listener, in the bytes that browsers send."""

from __future__ import annotations

import json
import socket

import pytest

from cortexd.config.gateway import Config, Gateway, Security
from tests.fakes import FakeNeuron
from tests.functional.raw import answered, answers
from tests.gateway.fleet import FAST, Answer, Fleet, running_fleet

EVIL = "https://evil.example"
PAGE = "https://chat.example"
BODY = {"model": "m", "messages": []}


async def send(
    fleet: Fleet,
    headers: dict[str, str],
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    is_admin: bool = False,
) -> Answer:
    url = (fleet.admin_url if is_admin else fleet.url) + path
    data = json.dumps(BODY) if method == "POST" else None
    async with fleet.client.request(method, url, data=data, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
@pytest.mark.parametrize("headers", [{"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}])
async def test_a_cross_site_post_runs_no_inference(headers: dict[str, str], kind: str) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await send(fleet, headers | {"Content-Type": kind})
        assert (answer.status, answer.headers["x-cortex-code"]) == (403, "forbidden_origin")
        assert "cors_origins" in answer.json["error"]["message"]
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert not fleet.neurons["a"].inference
        assert await fleet.metric("cortexd_refusals_total", code="forbidden_origin") == 1


async def test_the_refusal_prints_the_line_that_allows_the_page() -> None:
    config = Config(polling=FAST, gateway=Gateway(cors_origins=(PAGE,)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        answer = await send(fleet, {"Origin": "app://obsidian.md"}, "/v1/messages")
        assert answer.json["error"]["type"] == "permission_error"
        assert answer.json["error"]["message"].endswith(
            '[gateway] cors_origins = ["https://chat.example", "app://obsidian.md"]'
        )


async def test_a_name_that_was_rebound_reads_nothing_and_the_refusal_prints_the_line() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        host = f"evil.example:{fleet.gateway.address[1]}"
        for headers in ({"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "same-origin"}):
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
                answer = await send(fleet, headers | {"Host": host}, path, method=method)
                assert (answer.status, answer.headers["x-cortex-code"]) == (403, "forbidden_host")
                assert (
                    '[security] allowed_hosts = ["evil.example"]'
                    in (answer.json["error"]["message"])
                )
        assert not fleet.neurons["a"].inference


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "localhost",
        "box",
        "box.local",
        "box.lan",
        "box.internal",
        "box.home.arpa",
        "llm.example.com",
        socket.gethostname(),
    ],
)
async def test_a_page_of_the_same_origin_is_served_under_every_own_name(host: str) -> None:
    config = Config(polling=FAST, security=Security(allowed_hosts=("llm.example.com",)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        for headers in (
            {"Origin": f"http://{host}:8080"},
            {"Origin": f"http://{host}:8080", "Sec-Fetch-Site": "same-origin"},
            {"Sec-Fetch-Site": "none"},
        ):
            answer = await send(fleet, headers | {"Host": f"{host}:8080"})
            assert answer.status == 200, headers


async def test_a_page_without_an_origin_is_never_told_to_allow_every_such_page() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        answer = await send(fleet, {"Origin": "null"})
        assert (answer.status, answer.headers["x-cortex-code"]) == (403, "forbidden_origin")
        assert "serve it over http" in answer.json["error"]["message"]
        assert '"null"' not in answer.json["error"]["message"]


async def test_any_host_and_any_page_can_be_allowed() -> None:
    config = Config(
        polling=FAST,
        gateway=Gateway(cors_origins=("*",)),
        security=Security(allowed_hosts=("*",)),
    )
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        headers = {"Origin": EVIL, "Host": "llm.example.com", "Sec-Fetch-Site": "cross-site"}
        assert (await send(fleet, headers)).status == 200


async def test_requests_that_no_browser_marked_are_served_under_any_name() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        assert (await send(fleet, {"Host": "llm.example.com"})).status == 200


@pytest.mark.parametrize("path", ["/api/fleet", "/metrics", "/health", "/v1/models"])
async def test_operators_reads_are_for_no_other_origin_and_no_rebound_name(path: str) -> None:
    config = Config(polling=FAST, gateway=Gateway(cors_origins=("*",)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        for headers, code in (
            ({"Origin": EVIL}, "forbidden_origin"),
            ({"Sec-Fetch-Site": "cross-site"}, "forbidden_origin"),
            ({"Host": "evil.example", "Sec-Fetch-Site": "same-origin"}, "forbidden_host"),
            ({"Host": "evil.example"}, "forbidden_host"),  # as over plain http
        ):
            answer = await send(fleet, headers, path, method="GET", is_admin=True)
            assert (answer.status, answer.headers["x-cortex-code"]) == (403, code), headers
        for headers in ({}, {"Sec-Fetch-Site": "none"}, {"Host": "gateway:8081"}):
            answer = await send(fleet, headers, path, method="GET", is_admin=True)
            assert answer.status == 200, headers


@pytest.mark.parametrize(
    ("is_admin", "admin_listen"), [(False, ""), (True, ":0"), (True, "127.0.0.1:0")]
)
@pytest.mark.parametrize("mark", ["", "Sec-Fetch-Site: none\r\n"])
async def test_a_request_without_a_host_is_refused_only_where_a_browser_marked_it(
    mark: str, is_admin: bool, admin_listen: str
) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), admin_listen=admin_listen) as fleet:
        url = fleet.admin_url if is_admin else fleet.url
        address = "127.0.0.1", int(url.rpartition(":")[2])
        request = f"GET /health HTTP/1.0\r\n{mark}\r\n".encode()
        status_line = (await answered(address, request)).partition(b"\r\n")[0]
        assert status_line == (b"HTTP/1.0 403 Forbidden" if mark else b"HTTP/1.0 200 OK")


async def test_an_allowed_name_may_operate_the_gateway() -> None:
    config = Config(polling=FAST, security=Security(allowed_hosts=("ops.example.com",)))
    async with running_fleet(a=FakeNeuron({"m": "loaded"}), config=config) as fleet:
        headers = {"Host": "ops.example.com", "Content-Type": "application/json"}
        url = fleet.admin_url + "/api/nodes/a/drain"
        async with fleet.client.post(url, data="{}", headers=headers) as answer:
            assert answer.status == 200
        async with fleet.client.post(url, data="{}", headers=headers | {"Host": "x.y"}) as answer:
            assert answer.status == 403


async def test_each_refused_page_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        for _ in range(3):
            await send(fleet, {"Origin": EVIL})
            await send(fleet, {"Origin": "https://b.example"})
    lines = [r.getMessage() for r in caplog.records if "refused a request" in r.getMessage()]
    assert len(lines) == 2
    assert f'cors_origins = ["{EVIL}"]' in lines[0]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Transfer-Encoding: gzip", 400),
        ("X-Long: " + "x" * 40_000, 431),
        ("Content-Length: 999999999", 413),
    ],
)
async def test_a_page_can_read_the_refusals_of_the_http_layer(line: str, status: int) -> None:
    config = Config(polling=FAST, gateway=Gateway(cors_origins=(PAGE,)))
    async with running_fleet(config=config) as fleet:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: box\r\nOrigin: {PAGE}\r\n{line}\r\n\r\n"
        (answer,) = answers(await answered(fleet.gateway.address, head.encode()), "POST")
        assert answer.status == status
        assert answer.get("access-control-allow-origin") == PAGE
        assert answer.get("vary") == "Origin"
