"""A fake node that costs next to nothing: the neuron's wire and an engine, on pre-built bytes.

A process of its own (`python -m bench.upstream`). It says on stdout which ports it listens on, as
a JSON list, and ends when its stdin does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

from bench import answers
from bench.processes import raise_file_limit, wait_stdin_closed

FINEST = 0.001  # seconds between two turns of the wheel: the resolution of the loop's timers
SLOTS = 100  # of the wheel, at most


@dataclass(frozen=True)
class Options:
    """events, pace (seconds between two), size (bytes of one): of every stream.

    load_time: seconds that a load of the cold model takes.
    """

    events: int = 100
    pace: float = 0.02
    size: int = answers.EVENT_SIZE
    load_time: float = 2.0


class Wheel:
    """Paces all streams with one timer. Each keeps its slot, and gets a turn once per pace.

    A new stream's first turn comes after one tick more than the last one's, so that streams which
    begin together do not speak together: the cheapest case for a proxy would be hundreds of chunks
    in one wake-up, which no fleet of engines gives it. It stands still when there are none.
    """

    def __init__(self, pace: float) -> None:
        slots = min(SLOTS, max(1, round(pace / FINEST)))
        self._slots: list[list[Conversation]] = [[] for _ in range(slots)]
        self._tick = pace / slots
        self._turn = 0
        self._offset = 0
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._streams = 0

    def add(self, stream: Conversation) -> None:
        """Let `stream` send once per pace, until its `send_next` is false."""
        self._slots[(self._turn + self._offset) % len(self._slots)].append(stream)
        self._offset += 1
        self._streams += 1
        if self._streams == 1:
            self._due = self._loop.time() + self._tick
            self._loop.call_at(self._due, self._run)

    def _run(self) -> None:
        # The loop counts whole milliseconds: waiting for a part of one is spinning.
        now = self._loop.time() + FINEST / 2
        while self._due <= now:
            slot = self._slots[self._turn]
            if slot:
                left = self._slots[self._turn] = [each for each in slot if each.send_next()]
                self._streams -= len(slot) - len(left)
            self._turn = (self._turn + 1) % len(self._slots)
            self._due += self._tick
        if self._streams:
            self._loop.call_at(self._due, self._run)


class Upstream:
    """What all connections share: the bytes, the wheel, the state of the cold model."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.wheel = Wheel(options.pace)
        events = [answers.event(number, options.size) for number in range(options.events)]
        self.frames = [_chunk(event) for event in events]
        self.last_frame = _chunk(answers.ending()) + b"0\r\n\r\n"
        self.stream_head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self.plain = _json(answers.plain())
        self.started = time.monotonic()
        self.polls = 0
        self.loads = 0
        self.streams = 0  # under way
        self.loaded_at: float | None = None

    def get(self, path: str, port: int) -> bytes:
        """The answer to a GET: the neuron's wire, and what peers ask an engine."""
        models = [{"id": answers.MODEL, "status": "loaded"}]
        if self.loaded_at is not None:
            models.append({"id": answers.COLD, "status": "loaded"})
        found: object
        match path:
            case "/discovery":
                found = {"devices": [{"index": 0, "name": "Fake GPU", "vram_total_mb": 24000}]}
            case "/health":
                found = {"uptime_secs": time.monotonic() - self.started}
            case "/models":
                self.polls += 1
                found = models
            case "/v1/models":
                listed = [
                    {"id": it["id"], "object": "model", "created": 1, "owned_by": "bench"}
                    for it in models
                ]
                found = {"object": "list", "data": listed}
            case "/bench":
                found = {
                    "polls": self.polls,
                    "loads": self.loads,
                    "loaded_at": self.loaded_at,
                    "streams": self.streams,
                }
            case _ if path.endswith("/endpoint"):
                found = {"url": f"http://127.0.0.1:{port}"}
            case _:
                return _json(b'{"error":"unknown"}', b"404 Not Found")
        return _json(json.dumps(found).encode())


class Conversation(asyncio.Protocol):
    """One connection, and the stream that goes over it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._sent = 0
        self._paused = False
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # some peers try HTTP/2 first
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        """Answer what was asked."""
        path, body = self._url.decode(), self._body
        self._url = self._body = b""
        upstream = self._upstream
        if self._parser.get_method() == b"GET":
            port = self._transport.get_extra_info("sockname")[1]
            self._transport.write(upstream.get(path, port))
        elif path == "/models/load":
            upstream.loads += 1
            asyncio.get_running_loop().call_later(upstream.options.load_time, self._loaded)
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._sent = 1
            upstream.streams += 1
            self._transport.write(upstream.stream_head + upstream.frames[0])
            upstream.wheel.add(self)
        else:
            self._transport.write(upstream.plain)

    def send_next(self) -> bool:
        """One event more, if the reader takes it; false when the stream is over."""
        upstream = self._upstream
        if self._gone:
            upstream.streams -= 1
            return False
        if self._paused:
            return True
        if self._sent == len(upstream.frames):
            upstream.streams -= 1
            self._transport.write(upstream.last_frame)
            return False
        self._transport.write(upstream.frames[self._sent])
        self._sent += 1
        return True

    def _loaded(self) -> None:
        self._upstream.loaded_at = time.monotonic()
        self._transport.write(_json(b'{"status":"loaded"}'))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _json(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def serve(options: Options, ports: int) -> None:
    """Listen on `ports` free ports until stdin ends."""
    loop = asyncio.get_running_loop()
    upstream = Upstream(options)
    servers = [
        await loop.create_server(lambda: Conversation(upstream), "127.0.0.1", 0, backlog=4096)
        for _ in range(ports)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await wait_stdin_closed()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, default=1)
    for name, kind in (("events", int), ("pace", float), ("size", int), ("load_time", float)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Options, name))
    arguments = vars(parser.parse_args())
    ports = arguments.pop("ports")
    raise_file_limit()
    uvloop.run(serve(Options(**arguments), ports))
    sys.exit(0)


if __name__ == "__main__":
    main()
