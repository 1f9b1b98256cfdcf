from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.wire.sse import MAX_EVENT, UsageRemover, after

TEXT = b'data: {"choices":[{"delta":{"content":"\\"usage\\""}}],"usage":null}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7}}\n\n'
OTHERS = (
    b": a comment\n\n"
    b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}\r\n\r\n'
    b'event: x\ndata: {"choices":[],"usage":{}}\n\n'
    b'data: {"choices":[],"usage":null}\n\n'
    b'data: "usage" {broken\n\n'
)
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, 400), max_size=12))
def test_the_usage_event_alone_is_taken_out_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream = TEXT + OTHERS + USAGE + DONE
    remover = UsageRemover()
    edges = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    passed = b"".join(remover.feed(stream[a:b]) for a, b in pairwise(edges))
    assert passed + remover.rest() == TEXT + OTHERS + DONE
    assert remover.taken == USAGE


def test_whole_events_are_not_held_back() -> None:
    remover = UsageRemover()
    assert remover.feed(TEXT + b"data: {") == TEXT
    assert remover.feed(b"}") == b""
    assert remover.rest() == b"data: {}"


def test_a_stream_without_events_is_not_collected_for_ever() -> None:
    remover = UsageRemover()
    passed = sum(len(remover.feed(b"x" * 1000)) for _ in range(1000))
    assert passed >= 1_000_000 - MAX_EVENT - 1000


def test_other_fields_of_the_usage_event_are_passed_on() -> None:
    remover = UsageRemover()
    event = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7},"timings":{"a":1.50}}\n\n'
    assert remover.feed(event) == (
        b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":null}],'
        b'"timings":{"a":1.50}}\n\n'
    )
    assert remover.taken == event


@pytest.mark.parametrize(
    ("tail", "is_whole", "added"),
    [
        (b"", True, b""),
        (b"data: 1\n\n", True, b""),
        (b"data: 1\r\n\r\n", True, b""),
        (b"data: 1\n", True, b"\n"),
        (b"data: 1\r\n", True, b"\n"),
        (b"data: 1\r", True, b"\n\n"),
        (b"data: 1\r\n\r", True, b"\n"),
        (b"data: {", True, b"\n\n"),
        (b"event: x\ndata: {", True, b"\n\n"),
        (b"event: x\n", True, b""),
        (b"event: y", True, b"\n"),
        (b": comment", True, b"\n"),
        (b": comment\n", True, b""),
        (b"data: 1\n\n: comment\n", True, b""),
        (b"data: 1\n\n\n", True, b""),
        (b"middle of an event", False, b"\n\n"),
        (b"end of an event\n\n", False, b""),
    ],
)
def test_blank_line_ends_only_an_event_that_has_data(
    tail: bytes, is_whole: bool, added: bytes
) -> None:
    assert after(tail, b"data: E\n\n", is_whole=is_whole) == added + b"data: E\n\n"


@pytest.mark.parametrize("cut", [b"d", b"data:", b"data: "])
def test_event_after_half_of_its_own_first_line_completes_the_line(cut: bytes) -> None:
    said = b"data: 1\n\n" + cut
    assert said + after(said, b"data: E\n\n", is_whole=True) == b"data: 1\n\ndata: E\n\n"
