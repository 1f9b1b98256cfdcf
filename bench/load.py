"""The load generator: asks, and holds every answer against what was sent.

A process of its own (`python -m bench.load`) that takes commands on stdin and answers each with a
JSON line on stdout, so that whoever measures can read clocks between two of them. It ends when
its stdin does. The commands are the methods of `Generator`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import uvloop

from bench import answers
from bench.processes import raise_file_limit, stdin_lines

REASONS = 5  # of answers that are not whole; the rest is only counted
PORTS_PER_SOURCE = 20_000  # connections from one loopback address to one port


@dataclass(slots=True)
class Asked:
    """What is asked for, and so what a whole answer is; `events` None: a plain answer."""

    request: bytes
    events: int | None = None
    size: int = answers.EVENT_SIZE
    exact: bool = True


@dataclass(slots=True)
class Tally:
    """How a batch of requests went. Times are `time.monotonic()`, which processes share."""

    whole: int = 0
    wrong: int = 0
    reasons: list[str] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)  # seconds from request to body
    last_answer: float = 0.0

    def add(self, fault: str, first_byte: float | None) -> None:
        """Count one answer; `fault` says why it is not whole."""
        if fault:
            self.wrong += 1
            if len(self.reasons) < REASONS:
                self.reasons.append(fault)
        else:
            self.whole += 1
            self.last_answer = time.monotonic()
            if first_byte is not None:
                self.first_bytes.append(first_byte)


class Caller(asyncio.Protocol):
    """One keep-alive connection. `ask` sends a request, `done` hears how its answer was."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._asked: Asked | None = None
        self._done: Callable[[str, float | None], None] = lambda fault, first_byte: None
        self._first_byte: float | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has its own class

    def ask(self, asked: Asked, done: Callable[[str, float | None], None]) -> None:
        """Send a request. `done(fault, first_byte)` is called once, however it ends."""
        if self.closed:
            done("the connection was closed before", None)
            return
        self._asked, self._done = asked, done
        self._body.clear()
        self._first_byte = None
        self._parser = httptools.HttpResponseParser(self)
        self._sent_at = time.perf_counter()
        self.transport.write(asked.request)

    def data_received(self, data: bytes) -> None:
        if self._asked is None:
            self._end("bytes that nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end(f"closed after {len(self._body)} bytes")

    def on_body(self, data: bytes) -> None:
        if self._first_byte is None:
            self._first_byte = time.perf_counter() - self._sent_at
        self._body += data

    def on_message_complete(self) -> None:
        asked, status = self._asked, self._parser.get_status_code()
        assert asked is not None
        if status == 200:
            self._end(
                answers.fault(
                    bytes(self._body), events=asked.events, size=asked.size, exact=asked.exact
                )
            )
        else:
            self._end(f"status {status}: {bytes(self._body[:200])!r}")

    def _end(self, fault: str) -> None:
        if self._asked is None:
            return
        self._asked = None
        self._done(fault, self._first_byte)


class Generator:
    """The commands. Every one is bounded in time, and answers with a JSON value."""

    def __init__(self) -> None:
        self._callers: list[Caller] = []

    async def open(self, port: int, connections: int, rate: float = 2000.0) -> int:
        """Open connections to a loopback port, at most `rate` a second."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(connections):
            source = f"127.0.0.{1 + number // PORTS_PER_SOURCE}"
            _, caller = await loop.create_connection(
                Caller, "127.0.0.1", port, local_addr=(source, 0) if number else None
            )
            self._callers.append(caller)
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        return len(self._callers)

    async def close(self) -> int:
        """Abort every connection."""
        for caller in self._callers:
            caller.transport.abort()
        self._callers.clear()
        await asyncio.sleep(0)
        return 0

    async def ask(
        self,
        *,
        each: int,
        limit: float,
        model: str = answers.MODEL,
        events: int | None = None,
        size: int = answers.EVENT_SIZE,
        exact: bool = True,
        rate: float = 0,
    ) -> dict[str, Any]:
        """`each` requests on every connection, back to back; a Tally.

        rate: connections that begin per second; 0: all at once. What is not answered after
        `limit` seconds counts as wrong.
        """
        asked = Asked(
            answers.request(model, stream=events is not None), events=events, size=size, exact=exact
        )
        tally, ended = Tally(), asyncio.Event()
        open_batches = len(self._callers)

        def begin(caller: Caller, left: int) -> None:
            def done(fault: str, first_byte: float | None) -> None:
                nonlocal open_batches
                tally.add(fault, first_byte)
                if left > 1 and not caller.closed:
                    begin(caller, left - 1)
                    return
                for _ in range(left - 1):
                    tally.add("the connection was closed before", None)
                open_batches -= 1
                if not open_batches:
                    ended.set()

            caller.ask(asked, done)

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit):
                began = loop.time()
                for number, caller in enumerate(self._callers):
                    begin(caller, each)
                    if rate:
                        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
                await ended.wait()
        except TimeoutError:
            missing = len(self._callers) * each - tally.whole - tally.wrong
            tally.wrong += missing
            tally.reasons.append(f"{missing} not answered within {limit:g} s")
        return _facts(tally)

    async def burst(
        self, port: int, connections: int, limit: float, *, exact: bool = True
    ) -> dict[str, Any]:
        """One request on each of so many new connections, opened at once; a Tally, whose times
        begin when the connections do."""
        loop = asyncio.get_running_loop()
        asked, tally = Asked(answers.request(answers.MODEL, stream=False), exact=exact), Tally()

        async def connect_and_ask() -> None:
            began = time.perf_counter()
            _, caller = await loop.create_connection(Caller, "127.0.0.1", port)
            opened = time.perf_counter()
            answered: asyncio.Future[tuple[str, float | None]] = loop.create_future()
            caller.ask(asked, lambda *answer: answered.set_result(answer))
            fault, first_byte = await answered
            tally.add(fault, None if first_byte is None else opened - began + first_byte)
            caller.transport.abort()

        try:
            async with asyncio.timeout(limit):
                await asyncio.gather(*(connect_and_ask() for _ in range(connections)))
        except TimeoutError:
            missing = connections - tally.whole - tally.wrong
            tally.wrong += missing
            tally.reasons.append(f"{missing} not answered within {limit:g} s")
        return _facts(tally)

    async def alternate(
        self,
        *,
        ports: list[int],
        times: int,
        events: int,
        limit: float,
        exact: list[bool],
        pause: float = 0.0,
    ) -> list[dict[str, Any]]:
        """One request at a time, in turn over one connection per port; a Tally for each.

        pause: seconds of silence before each.
        """
        loop = asyncio.get_running_loop()
        callers = [(await loop.create_connection(Caller, "127.0.0.1", port))[1] for port in ports]
        tallies = [Tally() for _ in ports]
        request = answers.request(answers.MODEL, stream=True)
        try:
            async with asyncio.timeout(limit):
                for _ in range(times):
                    for caller, tally, same in zip(callers, tallies, exact, strict=True):
                        if pause:
                            await asyncio.sleep(pause)
                        answered: asyncio.Future[tuple[str, float | None]] = loop.create_future()
                        caller.ask(
                            Asked(request, events, exact=same),
                            lambda *answer, to=answered: to.set_result(answer),
                        )
                        tally.add(*await answered)
        except TimeoutError:
            for tally in tallies:
                missing = times - tally.whole - tally.wrong
                if missing:
                    tally.wrong += missing
                    tally.reasons.append(f"{missing} not answered within {limit:g} s")
        for caller in callers:
            caller.transport.abort()
        return [_facts(tally) for tally in tallies]

    async def stall(self) -> int:
        """Ask for a stream on every connection, and read nothing of it."""
        for caller in self._callers:
            caller.transport.pause_reading()
            caller.transport.write(answers.request(answers.MODEL, stream=True))
        return len(self._callers)


def _facts(tally: Tally) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in Tally.__dataclass_fields__}


async def serve() -> None:
    """Carry out commands, one at a time, until stdin ends."""
    generator = Generator()
    reader = await stdin_lines()
    while line := await reader.readline():
        command: dict[str, Any] = json.loads(line)
        answer = await getattr(generator, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


def main() -> None:
    """The process."""
    raise_file_limit()
    uvloop.run(serve())
    sys.exit(0)


if __name__ == "__main__":
    main()
