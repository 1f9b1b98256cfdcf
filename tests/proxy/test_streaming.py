"""Bytes that pass: whatever the upstream's framing, the client gets the same body."""

from __future__ import annotations

import pytest

from tests.functional.faults import Close, Drip, Send
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    STREAM,
    chunks,
    head,
    sized,
    staged,
    streamed,
)

FRAMINGS = {
    "sse-chunked": (STREAM, [Send(streamed())]),
    "sse-length": (STREAM, [Send(sized(STREAM, kind=SSE))]),
    "sse-eof": (STREAM, [Send(head(OK, SSE) + STREAM), Close()]),
    "json-length": (ANSWER, [Send(sized())]),
    "json-chunked": (ANSWER, [Send(head(OK, JSON, CHUNKED) + chunks(ANSWER) + LAST_CHUNK)]),
    "json-eof": (ANSWER, [Send(head(OK, JSON) + ANSWER), Close()]),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("body", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_a_body_reaches_the_client_unchanged_in_every_framing(
    framing: str, body: bytes
) -> None:
    expected, script = FRAMINGS[framing]
    async with staged(script) as stage:
        heard = await stage.ask(body)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_that_drips_byte_by_byte_is_the_same_body(framing: str) -> None:
    expected, script = FRAMINGS[framing]
    dripped = [Drip(step.data) if isinstance(step, Send) else step for step in script]
    async with staged(dripped) as stage:
        heard = await stage.ask(ASKED_STREAM)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)
