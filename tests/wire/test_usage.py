from __future__ import annotations

import pytest

from cortexd.wire.usage import Usage, from_body, from_stream


def sse(*events: str) -> bytes:
    return b"".join(b"data: " + event.encode() + b"\n\n" for event in events)


CHAT = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14}}'
CACHED = (
    '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,'
    '"prompt_tokens_details":{"cached_tokens":4}}}'
)
TIMINGS = '{"choices":[],"timings":{"cache_n":4,"prompt_n":1,"predicted_n":9,"predicted_ms":1.5}}'
NO_COUNTS = '{"choices":[{"delta":{"content":"usage"}}],"usage":null}'
RESPONSES = (
    '{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":2}}}'
)
START = '{"type":"message_start","message":{"usage":{"input_tokens":6,"output_tokens":0}}}'
DELTA = '{"type":"message_delta","usage":{"output_tokens":8}}'
WHOLE_DELTA = '{"type":"message_delta","usage":{"input_tokens":6,"output_tokens":8}}'

# Anthropic's prompt is what was read, what the cache held, and what the cache took.
CACHED_START = (
    '{"type":"message_start","message":{"usage":{"input_tokens":6,"cache_read_input_tokens":60,'
    '"cache_creation_input_tokens":40,"output_tokens":1}}}'
)
ZERO_DELTA = (
    '{"type":"message_delta","usage":{"input_tokens":0,"cache_read_input_tokens":0,'
    '"output_tokens":8}}'
)
LARGER_DELTA = (
    '{"type":"message_delta","usage":{"input_tokens":10,"cache_read_input_tokens":90,'
    '"cache_creation_input_tokens":40,"output_tokens":8}}'
)


@pytest.mark.parametrize(
    ("tail", "head", "expected"),
    [
        (sse(NO_COUNTS, CHAT, "[DONE]"), b"", Usage(5, 9)),
        (sse(CACHED, "[DONE]"), b"", Usage(5, 9, 4)),
        (sse(TIMINGS, "[DONE]"), b"", Usage(5, 9, 4)),
        (sse(TIMINGS, CHAT, "[DONE]"), b"", Usage(5, 9)),
        (sse(CHAT, TIMINGS, "[DONE]"), b"", Usage(5, 9)),
        (sse(RESPONSES), b"", Usage(3, 2)),
        (sse(DELTA, '{"type":"message_stop"}'), sse(START), Usage(6, 8)),
        (sse(DELTA), b"", None),
        (sse(WHOLE_DELTA), b"", Usage(6, 8)),
        (sse(DELTA), sse(CACHED_START), Usage(106, 8, 60)),
        (sse(CACHED_START, ZERO_DELTA), b"", Usage(106, 8, 60)),
        (sse(ZERO_DELTA), sse(CACHED_START), Usage(106, 8, 60)),
        (sse(LARGER_DELTA), sse(CACHED_START), Usage(140, 8, 90)),
        (sse(ZERO_DELTA), b"", Usage(0, 8)),
        (sse(NO_COUNTS, "[DONE]"), b"", None),
        (sse('{"usage": broken', "[DONE]"), b"", None),
        (sse('{"usage":{"prompt_tokens":"many"}}'), b"", None),
        (sse('{"usage":{"prompt_tokens":-1,"completion_tokens":2}}'), b"", None),
        (sse('{"usage":{"prompt_tokens":5,"completion_tokens":1%s}}' % ("0" * 30)), b"", None),
        (sse('{"timings":{"prompt_n":-1,"predicted_n":2}}'), b"", None),
        (b'"usage":{"prompt_tokens":1}}\n\n' + sse(NO_COUNTS), b"", None),
        (b'tput":[]},"usage":{"input_tokens":5,"output_tokens":9}}}\n\n', b"", Usage(5, 9)),
        (b"", b"", None),
    ],
)
def test_a_stream_is_counted_from_its_last_event_that_says(
    tail: bytes, head: bytes, expected: Usage | None
) -> None:
    assert from_stream(tail, head) == expected


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (CHAT.encode(), Usage(5, 9)),
        (CHAT.encode()[8:], Usage(5, 9)),
        (b'{"usage" : {"input_tokens":3,"output_tokens":2,"x":{"y":1}}}', Usage(3, 2)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3}}', Usage(3, 0)),
        (
            b'{"usage":{"input_tokens":3,"cache_read_input_tokens":60,'
            b'"cache_creation_input_tokens":40,"output_tokens":2}}',
            Usage(103, 2, 60),
        ),
        (
            b'{"usage":{"input_tokens":63,"input_tokens_details":{"cached_tokens":60},'
            b'"output_tokens":2}}',
            Usage(63, 2, 60),
        ),
        (
            b'{"content":"a \\"usage\\": {}","usage":{"prompt_tokens":1,"completion_tokens":2}}',
            Usage(1, 2),
        ),
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"s":"\\"usage\\""}', Usage(1, 2)),
        (TIMINGS.encode(), Usage(5, 9, 4)),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":3', None),
        (b'{"usage":{}}', None),
        (b"not json", None),
    ],
)
def test_a_body_is_counted_from_its_end(tail: bytes, expected: Usage | None) -> None:
    assert from_body(tail) == expected


def test_a_body_that_begins_with_its_counts_is_counted_too() -> None:
    assert from_body(b"0.1, 0.2]}]}", b'{"usage":{"prompt_tokens":3},"data":[') == Usage(3, 0)
