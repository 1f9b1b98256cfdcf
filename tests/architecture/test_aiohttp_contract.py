"""What the byte path relies on inside aiohttp. A test that fails here after an upgrade names what
has to be read again: `web_protocol.RequestHandler`, `web_server.Server` and the parser."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage

from tests.functional.raw import Address, answers, connected
from tests.waiting import until

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, **settings: Any) -> AsyncIterator[Address]:
    """A plain server of aiohttp's."""
    runner = web.ServerRunner(web.Server(handler, access_log=None, **settings))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0]
    finally:
        await runner.cleanup()


class Raw(web.StreamResponse):
    """An answer whose bytes are on the transport already: what the splice returns."""

    def __init__(self, request: web.BaseRequest) -> None:
        super().__init__()
        self._request = request

    @property
    def keep_alive(self) -> bool:
        return self._request.keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:  # type: ignore[override]
        pass

    async def write_eof(self, data: bytes = b"") -> None:
        pass


def write_raw(request: web.BaseRequest, body: bytes) -> Raw:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    request.writer.output_size = 1
    return Raw(request)


async def test_an_answer_written_around_aiohttp_lets_the_connection_go_on() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return write_raw(request, request.path.encode())

    async with served(handle) as address, connected(address) as client:
        await client.send(GET % b"1" + GET % b"2")  # in one piece: pipelined
        await client.read_until(b"/2")
        await client.send(LAST % b"3" + b"\r\n")
        await client.read_rest()
        bodies = [each.body for each in answers(client.received, *["GET"] * 3)]
        assert bodies == [b"/1", b"/2", b"/3"]


async def test_a_body_that_nobody_read_is_drained_before_the_next_request() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return write_raw(request, request.path.encode())

    post = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n" + GET % b"x" * 1
    async with served(handle) as address, connected(address) as client:
        await client.send(post)
        await client.read_until(b"/1")
        await client.send(bytes(600_000 - len(GET % b"x")) + LAST % b"2")
        await client.read_rest()
        bodies = [each.body for each in answers(client.received, "POST", "GET")]
        assert bodies == [b"/1", b"/2"]


async def test_after_bytes_went_out_a_failure_adds_none() -> None:
    is_read = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        write_raw(request, b"begun")
        await is_read.wait()
        raise ZeroDivisionError

    async with served(handle) as address, connected(address) as client:
        await client.send(GET % b"")
        await client.read_until(b"begun")
        is_read.set()
        assert await client.read_rest() == b""


async def test_a_client_that_leaves_cancels_its_handler_once() -> None:
    cancelled: list[BaseException] = []
    is_running = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        is_running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            cancelled.append(error)
            await asyncio.sleep(0)
            raise
        raise AssertionError

    async with served(handle, handler_cancellation=True) as address:
        async with connected(address) as client:
            await client.send(GET % b"")
            await is_running.wait()
        await until(lambda: bool(cancelled))
    assert len(cancelled) == 1


async def test_transports_tell_the_protocol_of_back_pressure() -> None:
    told: list[str] = []

    class Handler(web.RequestHandler):
        __slots__ = ()

        def pause_writing(self) -> None:
            super().pause_writing()
            told.append("pause" if self.writing_paused else "")

        def resume_writing(self) -> None:
            super().resume_writing()
            told.append("" if self.writing_paused else "resume")

    class Server(web.Server):
        def __call__(self) -> web.RequestHandler:
            return Handler(self, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        while not told:
            assert request.transport is not None
            request.transport.write(bytes(1 << 14))
            await asyncio.sleep(0)
        await until(lambda: len(told) > 1)
        request.writer.output_size = 1
        request.protocol.force_close()
        return Raw(request)

    runner = web.ServerRunner(Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with connected(runner.addresses[0], receive_buffer=4096) as client:
        await client.send(GET % b"")
        await until(lambda: bool(told))
        await client.read_rest()
    await runner.cleanup()
    assert told == ["pause", "resume"]


async def test_a_request_that_says_no_keep_alive_ends_the_connection_and_says_so() -> None:
    class Last(web.BaseRequest):
        @property
        def keep_alive(self) -> bool:
            return False

    def make(*args: Any) -> web.BaseRequest:
        return Last(*args, asyncio.get_running_loop())

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x")

    async with served(handle, request_factory=make) as address, connected(address) as client:
        await client.send(GET % b"" + GET % b"")
        (answer,) = answers(await client.read_rest(), "GET")
        assert answer.get("connection") == "close"


async def test_what_is_left_of_a_body_is_read_after_the_answer() -> None:
    """`gate.Leftover` is such a body."""
    order: list[str] = []

    class Body(StreamReader):
        async def readany(self) -> bytes:
            order.append("readany")
            return await asyncio.get_running_loop().create_future()

    def make(
        message: RawRequestMessage, payload: StreamReader, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        order.append(type(request.content).__name__)
        return web.Response(body=b"x")

    class Parser:
        def __init__(self, parser: Any, protocol: BaseProtocol) -> None:
            self._parser = parser
            self._protocol = protocol

        def feed_data(self, data: bytes) -> Any:
            ((message, _),), upgraded, tail = self._parser.feed_data(data)
            return [(message, Body(self._protocol, 0, loop=self._protocol._loop))], upgraded, tail

        def message_consumed(self) -> None:
            order.append("message_consumed")

    class Server(web.Server):
        def __call__(self) -> web.RequestHandler:
            handler = web.RequestHandler(
                self,
                loop=asyncio.get_running_loop(),
                access_log=None,  # type: ignore[arg-type]
                lingering_time=0.01,
            )
            handler._parser = Parser(handler._parser, handler)  # type: ignore[assignment]
            return handler

    runner = web.ServerRunner(Server(handle, request_factory=make))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with connected(runner.addresses[0]) as client:
        await client.send(GET % b"")
        assert (await client.read_rest()).endswith(b"\r\n\r\nx")
    await runner.cleanup()
    assert order == ["message_consumed", "Body", "readany"]


def parser(protocol: BaseProtocol, **limits: int) -> HttpRequestParser:
    return HttpRequestParser(protocol, asyncio.get_running_loop(), 1 << 16, **limits)


async def test_the_parser_tells_which_limit_was_passed() -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    limits = {"max_line_size": 100, "max_field_size": 200, "max_headers": 2}
    with pytest.raises(LineTooLong) as target:
        parser(protocol, **limits).feed_data(GET % bytes(101).hex().encode())
    assert target.value.args[1] == 100
    with pytest.raises(LineTooLong) as field:
        parser(protocol, **limits).feed_data((GET % b"")[:-2] + b"X: " + b"a" * 201)
    assert field.value.args[1] == 200
    with pytest.raises(HttpProcessingError) as fields:
        parser(protocol, **limits).feed_data((GET % b"")[:-2] + b"X: y\r\n" * 2 + b"\r\n")
    assert fields.value.message == "Too many headers received"


async def test_a_message_is_made_of_what_it_shows() -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    messages, upgraded, tail = parser(protocol).feed_data(GET % b"a?b=c")
    ((message, payload),) = messages
    assert (upgraded, tail) == (False, b"")
    assert payload.is_eof()
    names = "method path version headers raw_headers should_close compression upgrade chunked url"
    again = RawRequestMessage(*(getattr(message, name) for name in names.split()))
    assert repr(again) == repr(message)
    assert str(again.url) == "/a?b=c"
    assert again.raw_headers == ((b"Host", b"x"),)


async def test_the_names_that_are_used_are_there() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    server = web.Server(handle)
    handler = web.RequestHandler(server, loop=asyncio.get_running_loop())
    assert handler._request_in_progress is False
    assert isinstance(handler._parser, HttpRequestParser)
    assert handler._manager is server
    assert {"sink", "__dict__"}.isdisjoint(dir(handler))  # slots: one object, one size
    for name in ("feed_data", "message_consumed", "pause_reading", "set_upgraded"):
        assert callable(getattr(handler._parser, name))
    for name in ("pause_writing", "resume_writing", "handle_error", "close", "force_close"):
        assert callable(getattr(handler, name))
    calls = inspect.getsource(BaseProtocol) + inspect.getsource(web.RequestHandler)
    used = {
        part.split("(")[0].split(" ")[0].split(".")[0]
        for part in calls.replace("_payload_parser.", "").split("_parser.")[1:]
    }
    assert used == {"feed_data", "message_consumed", "pause_reading", "set_upgraded"}


def test_aiohttp_is_bounded_to_the_version_that_was_read() -> None:
    wanted = importlib.metadata.requires("cortexd") or []
    (bound,) = [each for each in wanted if each.startswith("aiohttp") and "extra" not in each]
    assert "<" in bound, bound
