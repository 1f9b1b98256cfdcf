"""What the byte path relies on inside aiohttp. A test that fails here after an upgrade names what
has to be read again: `web_protocol.RequestHandler`, `web_server.Server` and the parser."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser, StreamWriter
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


async def test_a_connection_is_what_its_start_makes_of_its_messages() -> None:
    """`door.Door.start` replaces aiohttp's own, and takes over all that it did."""
    seen: list[object] = []

    class Connection(web.RequestHandler):
        __slots__ = ()

        async def start(self) -> None:
            try:
                seen.append(self._waiter)
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                    self._waiter = None
                seen.append(self._request_count)
                while self._messages:
                    message, payload = self._messages.popleft()
                    assert self._parser is not None
                    self._parser.message_consumed()
                    await self.answer(cast(RawRequestMessage, message), payload)
            finally:
                self.force_close()

        async def answer(self, message: RawRequestMessage, payload: StreamReader) -> None:
            writer, task = StreamWriter(self, self._loop), cast(Any, None)
            request = web.BaseRequest(message, payload, self, writer, task, self._loop)
            response = web.Response(body=request.path.encode())
            _, is_lost = await self.finish_response(request, response, None)
            seen.append((payload.is_eof(), is_lost, response.keep_alive))

    class Server(web.Server):
        def __call__(self) -> web.RequestHandler:
            return Connection(self, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    runner = web.ServerRunner(Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with connected(runner.addresses[0]) as client:
        await client.send(GET % b"1" + LAST % b"2")
        bodies = [each.body for each in answers(await client.read_rest(), "GET", "GET")]
    await runner.cleanup()
    assert bodies == [b"/1", b"/2"]
    assert seen == [None, 2, (True, False, True), (True, False, False)]


async def test_the_names_that_are_used_are_there() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    server = web.Server(handle)
    handler = web.RequestHandler(server, loop=asyncio.get_running_loop(), keepalive_timeout=0)
    assert isinstance(handler._parser, HttpRequestParser)
    assert handler._manager is server
    assert {"sink", "__dict__"}.isdisjoint(dir(handler))  # slots: one object, one size
    for name, value in {
        "_request_in_progress": False,
        "_force_close": False,
        "_close": False,
        "_reading_paused": False,
        "_buffer_paused": False,
        "_request_count": 0,
        "_waiter": None,
        "_current_request": None,
        "_handler_waiter": None,
        "_task_handler": None,
    }.items():
        assert getattr(handler, name) == value, name
    assert handler._msg_queue_resume_size < handler._max_msg_queue_size
    for name in ("feed_data", "message_consumed", "pause_reading", "set_upgraded"):
        assert callable(getattr(handler._parser, name))
    for name in (
        "pause_writing",
        "resume_writing",
        "resume_reading",
        "start",
        "finish_response",
        "close",
        "force_close",
        "_resume_reading_if_drained",
    ):
        assert callable(getattr(handler, name))
    calls = inspect.getsource(BaseProtocol) + inspect.getsource(web.RequestHandler)
    used = {
        part.split("(")[0].split(" ")[0].split(".")[0]
        for part in calls.replace("_payload_parser.", "").split("_parser.")[1:]
    }
    assert used == {"feed_data", "message_consumed", "pause_reading", "set_upgraded"}
    # A timer per connection, which the sweeper makes needless, is only set where there is a time.
    assert "if self._keepalive_timeout > 0:" in inspect.getsource(web.RequestHandler)


def test_aiohttp_is_bounded_to_the_version_that_was_read() -> None:
    wanted = importlib.metadata.requires("cortexd") or []
    (bound,) = [each for each in wanted if each.startswith("aiohttp") and "extra" not in each]
    assert "<" in bound, bound
