"""Carry one HTTP exchange: the client's request to an upstream, its answer back, byte for byte.

Nothing here decides where a request goes or whether it is tried again: a fault before the first
byte of an answer is raised as `UpstreamFault`, and the caller chooses. After that nothing is
raised any more but the client's own leaving (CancelledError): the stream ends or is aborted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from cortexd.proxy.headers import client_headers, upstream_headers
from cortexd.wire import usage


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one upstream.

    url: absolute, with the path and query of the client.
    headers: sent upstream besides the client's own (the node's token).
    answer_headers: sent to the client besides the upstream's own.
    Deadlines are in seconds; `first_byte_timeout` None waits as long as the client does.
    """

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 3.0
    first_byte_timeout: float | None = None
    idle_timeout: float = 300.0


class UpstreamFault(Exception):
    """No answer came. `refused`: no connection was made, so the request was never seen there."""

    def __init__(self, what: Literal["refused", "reset", "timeout"], detail: str) -> None:
        super().__init__(detail)
        self.what = what


@dataclass(slots=True)
class Carried:
    """How an answer went. Times are `time.monotonic()` seconds."""

    response: web.StreamResponse
    status: int
    first_byte: float
    usage: usage.Usage | None = None
    interrupted: bool = False


class Exchange:
    """Carries exchanges over a pool of upstream connections."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            # One a request: an idle one that the engine closes meanwhile would fail a POST.
            connector=aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(),
        )

    async def close(self) -> None:
        """Close every upstream connection."""
        await self._session.close()

    async def carry(self, client: web.BaseRequest, call: Call) -> Carried:
        """Send `call` and pass its answer to `client`.

        Raises UpstreamFault while nothing was sent to the client.
        """
        headers = CIMultiDict(upstream_headers(client.headers.items()))
        headers.update(call.headers)
        headers["Accept-Encoding"] = "identity"
        try:
            async with asyncio.timeout(call.first_byte_timeout):
                answer = await self._session.request(
                    client.method,
                    call.url,
                    data=call.body or None,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        sock_connect=call.connect_timeout, sock_read=None, total=None
                    ),
                )
        except aiohttp.ClientConnectorError as error:
            raise UpstreamFault("refused", str(error)) from error
        except aiohttp.ServerTimeoutError as error:  # the connection was not made in time
            raise UpstreamFault("refused", str(error)) from error
        except TimeoutError as error:
            raise UpstreamFault("timeout", "no first byte in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFault("reset", str(error) or type(error).__name__) from error
        async with answer:
            return await self._pass_on(client, call, answer)

    async def _pass_on(
        self, client: web.BaseRequest, call: Call, answer: aiohttp.ClientResponse
    ) -> Carried:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in client_headers(answer.headers.items()):
            response.headers.add(name, value)
        response.headers.update(call.answer_headers)
        events = answer.content_type == "text/event-stream"
        if events:
            response.headers["Cache-Control"] = "no-cache"
            response.headers["X-Accel-Buffering"] = "no"
        if answer.content_length is not None:
            response.content_length = answer.content_length
        elif client.version >= (1, 1):
            response.enable_chunked_encoding()
        else:
            response.force_close()
        carried = Carried(response, answer.status, time.monotonic())
        await response.prepare(client)
        head, tail = b"", b""
        try:
            while True:
                async with asyncio.timeout(call.idle_timeout):
                    chunk = await answer.content.readany()
                if not chunk:
                    break
                head = head or chunk
                tail = chunk if len(chunk) >= usage.TAIL else (tail + chunk)[-usage.TAIL :]
                await response.write(chunk)
            await response.write_eof()
        except (aiohttp.ClientError, TimeoutError):
            # Cutting the connection is the only honest end for an answer that is not whole.
            carried.interrupted = True
            if client.transport is not None:
                client.transport.abort()
        except ConnectionError:
            with suppress(AttributeError):
                client.transport.abort()  # type: ignore[union-attr]
            raise asyncio.CancelledError from None
        carried.usage = usage.from_stream(tail, head) if events else usage.from_body(tail)
        return carried
