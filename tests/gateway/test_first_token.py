"""First byte and first token of a stream."""

from __future__ import annotations

import pytest

from tests.functional.faults import Drip, Send, Step
from tests.functional.raw import post
from tests.gateway.fleet import total
from tests.proxy.stage import (
    ASKED_STREAM,
    CHAT,
    LAST_CHUNK,
    SSE_HEAD,
    Stage,
    chunks,
    sized,
    staged,
    streamed,
    upstream,
)

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"h"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
TEXT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"h"}}\n\n'
)


async def counted(stage: Stage, path: str = CHAT) -> tuple[float, float, float]:
    """Return how many first bytes and first tokens one stream has, and the seconds between them."""
    async with stage.client() as client:
        assert (await client.ask(post(ASKED_STREAM, path=path))).complete
    said = (await stage.fleet.get("/metrics")).body.decode()
    names = ("cortexd_time_to_first_byte_seconds", "cortexd_time_to_first_token_seconds")
    byte, token = (total(said, f"{name}_count", model="m", node="a") for name in names)
    early, late = (total(said, f"{name}_sum") for name in names)
    return byte, token, late - early


@pytest.mark.parametrize(
    "script",
    [
        [Send(streamed(ROLE, DONE))],
        [Send(streamed(ROLE, b": keep-alive\n\n", DONE))],
        [Send(sized(b'{"choices":[{"message":{"content":"h"}}]}'))],
    ],
    ids=["role", "comment", "no event stream"],
)
async def test_stream_has_no_first_token(script: list[Step]) -> None:
    async with staged(script) as stage:
        assert (await counted(stage))[:2] == (1, 0)


@pytest.mark.parametrize(
    "script",
    [
        [Send(streamed(TOKEN, DONE))],
        [Send(SSE_HEAD), Drip(chunks(ROLE + TOKEN + DONE) + LAST_CHUNK, sizes=(7,))],
    ],
    ids=["whole", "in pieces of 7 bytes"],
)
async def test_stream_has_first_token(script: list[Step]) -> None:
    async with staged(script) as stage:
        assert (await counted(stage))[:2] == (1, 1)


@pytest.mark.parametrize(
    ("path", "early", "late"),
    [(CHAT, ROLE, TOKEN), ("/v1/messages", PING, TEXT)],
    ids=["chat", "messages"],
)
@pytest.mark.parametrize("ask_usage", [False, True])
async def test_first_token_comes_after_role_or_ping(
    path: str, early: bytes, late: bytes, ask_usage: bool
) -> None:
    pieces = Drip(chunks(early) + chunks(late) + LAST_CHUNK, sizes=(len(chunks(early)), 10_000))
    async with staged([Send(SSE_HEAD), pieces], config=upstream(ask_usage=ask_usage)) as stage:
        byte, token, between = await counted(stage, path)
        assert (byte, token) == (1, 1)
        assert between > 0
