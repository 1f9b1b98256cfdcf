from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cortexd.wire.sse import MAX_EVENT, UsageRemover

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
