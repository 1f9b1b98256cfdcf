"""A whole gateway before a hostile upstream, and the answers that upstreams give, in bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web

from cortexd.config.gateway import Config, Upstream
from cortexd.config.units import Duration
from cortexd.daemon.access import AccessLog
from cortexd.proxy.door import Door
from tests.fakes import FakeNeuron
from tests.functional.faults import Origin, Peer, Script
from tests.functional.raw import Client, Heard, connected, post
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import until

ASKED = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
ASKED_STREAM = ASKED[:-1] + b', "stream": true}'

OK = "HTTP/1.1 200 OK"
SSE = "Content-Type: text/event-stream"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"

EVENTS = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"h\xc3\xa9"}}]}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)
STREAM = b"".join(EVENTS)
ANSWER = (
    b'{"id":"c1","object":"chat.completion","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"h\xc3\xa9 \xf0\x9f\x8e\x89 \\ud83c"}}],\r\n "usage":'
    b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}'
)


def head(*lines: str) -> bytes:
    """An answer's head; the first line is the status line."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def sized(body: bytes = ANSWER, *headers: str, status: str = OK, kind: str = JSON) -> bytes:
    """A whole answer with Content-Length."""
    return head(status, kind, f"Content-Length: {len(body)}", *headers) + body


def chunks(*pieces: bytes) -> bytes:
    """Chunks, without the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


CHAT = "/v1/chat/completions"

# How each dialect says that a stream died: path → the last event that the client sees.
DEATHS = {
    CHAT: None,
    "/v1/completions": None,
    "/v1/messages": "error",
    "/v1/responses": "response.failed",
}

LAST_CHUNK = b"0\r\n\r\n"
SSE_HEAD = head(OK, SSE, CHUNKED)


def streamed(*pieces: bytes) -> bytes:
    """A whole SSE answer in chunks."""
    return SSE_HEAD + chunks(*(pieces or EVENTS)) + LAST_CHUNK


def upstream(**settings: Any) -> Config:
    """A configuration with `[upstream]` settings; numbers of seconds are durations."""
    return Config(
        polling=FAST,
        upstream=Upstream(
            **{
                name: Duration(value) if name.endswith("timeout") else value
                for name, value in settings.items()
            }
        ),
    )


def in_turn(*scripts: Script) -> Callable[[Peer], Script]:
    """One sequence of scripts for several origins; the last one for ever."""
    left = list(scripts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def served_by(url: str, status: str = "loaded", model: str = "m") -> FakeNeuron:
    """A neuron whose model is served at another URL."""
    neuron = FakeNeuron({model: status})
    neuron.endpoint_answer = lambda _: web.json_response({"url": url})
    return neuron


class Stage:
    """The gateway, the upstream behind it, and raw clients of it."""

    def __init__(self, fleet: Fleet, origin: Origin) -> None:
        self.fleet = fleet
        self.origin = origin

    def client(self, **options: int) -> AbstractAsyncContextManager[Client]:
        return connected(self.fleet.gateway.address, **options)

    @property
    def doors(self) -> frozenset[Door]:
        """The clients' connections, as the gateway has them."""
        return self.fleet.gateway.listeners.all[0].server.doors

    async def ask(self, body: bytes = ASKED, *headers: str, **options: str) -> Heard:
        """One request on a connection of its own."""
        return await ask(self.fleet, body, *headers, **options)

    async def wait_idle(self) -> None:
        """Until no request is in flight."""
        await until(lambda: not self.fleet.gateway.registry.ledger.in_flight)


@asynccontextmanager
async def staged(
    *scripts: Script,
    config: Config | None = None,
    model: str = "m",
    aliases: dict[str, str] | None = None,
    origin: Origin | None = None,
    access: AccessLog | None = None,
) -> AsyncIterator[Stage]:
    """A gateway before one node whose model an `Origin` serves by these scripts."""
    origin = origin or Origin(*scripts)
    async with (
        origin.running(),
        running_fleet(
            a=served_by(origin.url, model=model), config=config, aliases=aliases, access=access
        ) as fleet,
    ):
        yield Stage(fleet, origin)


@asynccontextmanager
async def replicas(
    *urls: str, config: Config | None = None, access: AccessLog | None = None
) -> AsyncIterator[Fleet]:
    """A gateway before nodes `a`, `b`, …, each with the model, which is served at these URLs in
    the order in which the gateway asks for them: it is free to choose whom to ask first."""
    left = list(urls)
    given: dict[str, str] = {}
    neurons = {name: FakeNeuron({"m": "loaded"}) for name in "abcdefgh"[: len(urls)]}

    def tell(name: str) -> Callable[[str], web.Response]:
        def answer(_: str) -> web.Response:
            if name not in given:
                given[name] = left.pop(0)
            return web.json_response({"url": given[name]})

        return answer

    for name, neuron in neurons.items():
        neuron.endpoint_answer = tell(name)
    async with running_fleet(config=config, access=access, **neurons) as fleet:
        yield fleet


@asynccontextmanager
async def origins(
    *origins: Origin, config: Config | None = None, access: AccessLog | None = None
) -> AsyncIterator[Fleet]:
    """A gateway before one replica for each of these."""
    async with AsyncExitStack() as stack:
        for origin in origins:
            await stack.enter_async_context(origin.running())
        yield await stack.enter_async_context(
            replicas(*(origin.url for origin in origins), config=config, access=access)
        )


async def ask(fleet: Fleet, body: bytes = ASKED, *headers: str, **options: str) -> Heard:
    """One request on a connection of its own."""
    async with connected(fleet.gateway.address) as client:
        return await client.ask(post(body, *headers, **options))


def events_of(body: bytes) -> list[tuple[str | None, Any]]:
    """An SSE body → (event name, decoded data) for each event, as a client would dispatch them."""
    found = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        name, data = None, []
        for line in block.split(b"\n"):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
        if data:
            text = b"\n".join(data)
            try:
                found.append((name, json.loads(text)))
            except ValueError:
                found.append((name, text))
    return found


def is_refusal(heard: Heard, code: str = "upstream_failed", status: int = 502) -> bool:
    """Whether it is a whole refusal in the OpenAI envelope."""
    assert (heard.status, heard.code, heard.complete) == (status, code, True), heard
    assert heard.json["error"]["code"] == code  # type: ignore[index]
    return True


def died_in_words(heard: Heard, path: str, before: bytes) -> bool:
    """Whether a stream ended with `before`, then its dialect's error event, then the connection."""
    assert heard.status == 200
    assert heard.body.startswith(before)
    if path == "/v1/responses":  # `response.failed` is an end that nobody takes for a whole answer
        assert heard.complete
    else:
        assert not heard.complete
        assert heard.ended == "eof", "a reset could take the event along"
        assert not heard.raw.endswith(LAST_CHUNK)
    told = heard.body[len(before) :]
    assert told.endswith(b"\n\n")
    blank = (
        b""
        if before.endswith(b"\n\n") or not before
        else b"\n"
        if before.endswith(b"\n")
        else b"\n\n"
    )
    assert told.startswith(blank), "the cut event ends before ours"
    assert not told.removeprefix(blank).startswith(b"\n"), "there is no event without data"
    assert b"[DONE]" not in told
    assert b"message_stop" not in told
    assert b"response.completed" not in told
    *created, (name, data) = events_of(told)
    assert not created
    assert events_of(heard.body)[-1] == (name, data), "it stands by itself"
    assert name == DEATHS[path]
    if path == "/v1/messages":
        assert data["type"] == "error"
        assert data["error"]["type"] == "api_error"
        assert data["error"]["message"]
    elif path == "/v1/responses":
        assert data["type"] == "response.failed"
        assert data["response"]["status"] == "failed"
        assert data["response"]["error"]["message"]
    else:
        assert data["error"]["code"] == "upstream_interrupted"
        assert data["error"]["type"] == "api_error"
        assert data["error"]["message"]
    return True
