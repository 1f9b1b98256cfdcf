"""`[upstream] ask_usage`: counts are asked for, and taken out again for who did not ask."""

from __future__ import annotations

import json

import pytest

from cortexd.config.gateway import Config
from tests.functional.faults import Close, Drip, Script, Send
from tests.proxy.stage import OK, SSE, head, staged, streamed, upstream

ASKED = b'{"model":"m","messages":[],"stream":true,"z":1.50}'
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

TEXT = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}\n\n'
USAGE = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
BOTH = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"hi"}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def on() -> Config:
    return upstream(ask_usage=True)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "script",
    [
        [Send(streamed(TEXT, USAGE, DONE))],
        [Send(streamed(TEXT + USAGE + DONE))],
        [Send(streamed(TEXT[:9], TEXT[9:] + USAGE[:30], USAGE[30:] + DONE))],
        [Drip(streamed(TEXT, USAGE, DONE))],
        [Drip(streamed(TEXT, USAGE, DONE), (41, 97))],
        [Send(head(OK, SSE) + TEXT + USAGE + DONE), Close()],
    ],
    ids=["a chunk each", "one chunk", "across chunks", "byte by byte", "in pieces", "no chunks"],
)
async def test_counts_are_asked_for_and_taken_out_again(script: Script, path: str) -> None:
    async with staged(script, config=on()) as stage:
        heard = await stage.ask(ASKED, path=path)
        assert (heard.complete, heard.body) == (True, TEXT + DONE)
        sent = stage.origin.requests[0].body
        assert json.loads(sent) == json.loads(ASKED) | {"stream_options": {"include_usage": True}}
        assert b"1.50" in sent
        assert await stage.fleet.metric("cortexd_completion_tokens_total") == 2
        assert await stage.fleet.metric("cortexd_usage_missing_total") == 0


async def test_other_stream_options_are_kept() -> None:
    asked = ASKED[:-1] + b',"stream_options":{"x":1.50}}'
    async with staged([Send(streamed(TEXT, USAGE, DONE))], config=on()) as stage:
        assert (await stage.ask(asked)).body == TEXT + DONE
        sent = json.loads(stage.origin.requests[0].body)
        assert sent["stream_options"] == {"x": 1.5, "include_usage": True}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, ASKED[:-1] + b',"stream_options":{"include_usage":true}}'),
        (CHAT, ASKED.replace(b"true", b"false")),
        (CHAT, ASKED.replace(b'"stream":true,', b"")),
        ("/v1/messages", ASKED),
        ("/v1/responses", ASKED),
    ],
    ids=["asked for", "no stream", "no word of a stream", "messages", "responses"],
)
async def test_what_needs_no_asking_passes_as_it_is(path: str, asked: bytes) -> None:
    async with staged([Send(streamed(TEXT, USAGE, DONE))], config=on()) as stage:
        assert (await stage.ask(asked, path=path)).body == TEXT + USAGE + DONE
        assert stage.origin.requests[0].body == asked


async def test_an_event_that_has_both_text_and_counts_is_kept() -> None:
    async with staged([Send(streamed(BOTH, DONE))], config=on()) as stage:
        assert (await stage.ask(ASKED)).body == BOTH + DONE


async def test_text_that_speaks_of_usage_is_kept() -> None:
    said = json.dumps('"choices":[],"usage":{"prompt_tokens":7}').encode()
    text = TEXT.replace(b'"hi"', said)
    async with staged([Send(streamed(text, USAGE, DONE))], config=on()) as stage:
        assert (await stage.ask(ASKED)).body == text + DONE


async def test_a_long_event_that_comes_in_crumbs_is_held_back_and_passed() -> None:
    """On the wire it is longer than a head may be."""
    text = TEXT.replace(b"hi", b"x" * 60_000)
    crumbs = [text[at : at + 10] for at in range(0, len(text), 10)]
    async with staged([Drip(streamed(*crumbs, USAGE, DONE), (7_000,))], config=on()) as stage:
        heard = await stage.ask(ASKED)
        assert (heard.complete, heard.body) == (True, text + DONE)


async def test_text_that_is_not_utf_8_passes_as_it_is() -> None:
    text = TEXT.replace(b"hi", b"h\xff")
    async with staged([Send(streamed(text, USAGE, DONE))], config=on()) as stage:
        heard = await stage.ask(ASKED)
        assert (heard.complete, heard.body) == (True, text + DONE)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_timings_of_llama_cpp_are_kept_when_usage_is_taken_out(path: str) -> None:
    kind = "text_completion" if path == COMPLETIONS else "chat.completion.chunk"
    timings = {"prompt_n": 7, "predicted_n": 2, "predicted_ms": 12.5}
    last = json.loads(USAGE[6:]) | {"object": kind, "timings": timings}
    sent = b"data: %b\n\n" % json.dumps(last).encode()
    async with staged([Send(streamed(TEXT, sent, DONE))], config=on()) as stage:
        heard = await stage.ask(ASKED, path=path)
        text, left, done = heard.body.split(b"\n\n")[:-1]
        assert (text + b"\n\n", done + b"\n\n") == (TEXT, DONE)
        chunk = json.loads(left[6:])
        assert (chunk["id"], chunk["timings"]) == ("c1", timings)
        assert "usage" not in chunk
        # Who did not ask for usage reads a choice of every chunk.
        (choice,) = chunk["choices"]
        assert not (choice["text"] if path == COMPLETIONS else choice["delta"])
        assert choice["finish_reason"] is None
        assert await stage.fleet.metric("cortexd_completion_tokens_total") == 2
