"""GET /api/events: what happens in the fleet, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, cast

import msgspec
from aiohttp import web

from cortexd.control.events import Events, FleetEvent
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.refusals import own_headers
from cortexd.proxy.door import Door
from cortexd.proxy.headers import UNBUFFERED
from cortexd.wire import sse

# Seconds after which a comment keeps proxies from closing what they take for dead.
QUIET: Final = 15.0
LAST: Final = 1.0  # seconds that a listener which is let go has to take what is left

_HEADERS: Final = {"Content-Type": "text/event-stream"} | UNBUFFERED


async def stream_events(
    inbound: Inbound, events: Events, allowance: Mapping[str, str]
) -> web.StreamResponse:
    """Send the stream until the client disconnects, is too slow, or the gateway stops.

    allowance: the fields that let a web page read it.
    """
    response = web.StreamResponse(
        headers={**_HEADERS, **own_headers(inbound.dialect, inbound.request_id), **allowance}
    )
    response.force_close()  # it is over when the gateway stops, and so is its connection
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as bound:
            # A client that takes nothing holds up the write: only a deadline ends that.
            with events.listening(lambda: bound.reschedule(loop.time() + LAST)) as queue:
                await response.prepare(inbound.request)
                await response.write(b": cortexd\n\n")
                while (chunk := await _next(queue)) is not None:
                    await response.write(chunk)
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        cast(Door, inbound.request.protocol).abort()
    return response


async def _next(queue: asyncio.Queue[FleetEvent | None]) -> bytes | None:
    try:
        async with asyncio.timeout(QUIET):
            event = await queue.get()
    except TimeoutError:
        return b":\n\n"
    if event is None:
        return None
    return sse.event(event.event, msgspec.json.encode(event))
