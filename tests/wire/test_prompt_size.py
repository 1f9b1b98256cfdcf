"""The lower bound of a prompt's tokens: it may be far too low, but never too high."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.wire import prompt_size
from cortexd.wire.prompt_size import BYTES_PER_TOKEN, least_tokens

TEN = "one two three four five six seven eight nine ten"  # 5 tokens at least


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {"messages": [{"role": "user", "content": TEN}]}, 5),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": TEN}]}]}, 5),
        (
            CHAT,
            {
                "messages": [
                    {"role": "system", "content": TEN},
                    {"role": "developer", "content": TEN},
                    {"role": "user", "content": TEN},
                    {"role": "tool", "content": TEN, "tool_call_id": "1"},
                ]
            },
            20,
        ),
        ("/v1/completions", {"prompt": TEN}, 5),
        (MESSAGES, {"system": TEN, "messages": [{"role": "user", "content": TEN}]}, 10),
        (
            MESSAGES,
            {
                "system": [{"type": "text", "text": TEN}],
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "1", "content": TEN},
                            {
                                "type": "tool_result",
                                "tool_use_id": "2",
                                "content": [{"type": "text", "text": TEN}],
                            },
                        ],
                    }
                ],
            },
            15,
        ),
        (RESPONSES, {"instructions": TEN, "input": TEN}, 10),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": TEN}]},
                    {"type": "function_call_output", "call_id": "1", "output": TEN},
                ],
                "truncation": "disabled",
            },
            10,
        ),
        # What may be left out, is no text, or may be cut.
        (CHAT, {"messages": [{"role": "assistant", "content": TEN, "reasoning": TEN}]}, 0),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "x " * 1000}}],
                    }
                ],
                "tools": [{"description": TEN}],
            },
            0,
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 10_000}]}, 0),
        (CHAT, {"messages": [{"role": "user", "content": " " * 10_000}]}, 0),
        (CHAT, {"messages": [{"role": "user", "content": TEN}], "truncate_prompt_tokens": 3}, 0),
        (RESPONSES, {"input": TEN, "truncation": "auto"}, 0),
        ("/v1/completions", {"prompt": [TEN, TEN]}, 0),
        ("/v1/embeddings", {"input": TEN}, 0),
        ("/v1/rerank", {"query": TEN, "documents": [TEN]}, 0),
        (CHAT, {"messages": "what"}, 0),
        (CHAT, {"messages": [{"role": 7}]}, 0),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, 0),
        (CHAT, {}, 0),
    ],
)
def test_least_tokens_of_a_request(path: str, fields: dict[str, Any], expected: int) -> None:
    assert least_tokens(path, body(**fields)) == expected


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10_000, b'{"prompt":"\xff"}'])
def test_body_that_is_not_understood_has_no_size(content: bytes) -> None:
    assert least_tokens("/v1/completions", content) == 0


def test_text_is_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_size, "MAX_COUNTED", 101)
    messages = [{"role": "user", "content": "one two three"}] * 100
    assert 0 < least_tokens(CHAT, body(messages=messages)) <= 101 // 4


@given(st.lists(st.text(), max_size=20))
def test_bound_is_below_what_the_bytes_could_be(texts: list[str]) -> None:
    content = body(messages=[{"role": "user", "content": text} for text in texts])
    least = least_tokens(CHAT, content)
    assert least <= len(content) // BYTES_PER_TOKEN
    assert least <= len(" ".join(texts).split()) / 2
