"""The event of a stream that has its first token, in the words of real engines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortexd.wire.first_token import FIRST_TOKEN

CHAT, COMPLETIONS, MESSAGES, RESPONSES = FIRST_TOKEN


def chat(**delta: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
    }


ROLES = (chat(role="assistant", content=""), chat(role="assistant", content=None))
CREATED = {
    "type": "response.created",
    "sequence_number": 0,
    "response": {
        "id": "r",
        "model": "m",
        "instructions": 'say "delta":"x"',
        "output": [],
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [{"type": "function", "name": "f"}],
    },
}


@pytest.mark.parametrize(
    ("path", "event"),
    [
        *((CHAT, role) for role in ROLES),
        (CHAT, chat(role="assistant", content="", tool_calls=[])),
        (CHAT, {"choices": [], "prompt_progress": {"total": 9, "processed": 1}}),
        (COMPLETIONS, {"object": "text_completion", "choices": [{"index": 0, "text": ""}]}),
        (MESSAGES, {"type": "ping"}),
        (
            MESSAGES,
            {
                "type": "message_start",
                "message": {"id": "x", "role": "assistant", "content": [], "usage": {}},
            },
        ),
        (
            MESSAGES,
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
        ),
        (RESPONSES, CREATED),
        (RESPONSES, {"type": "response.in_progress", "response": {"id": "r"}}),
        (
            RESPONSES,
            {
                "type": "response.output_item.added",
                "item": {"type": "message", "role": "assistant", "content": []},
            },
        ),
        (
            RESPONSES,
            {
                "type": "response.content_part.added",
                "part": {"type": "output_text", "text": ""},
            },
        ),
    ],
)
def test_event_has_no_token(path: str, event: dict[str, Any]) -> None:
    for text in spelt(event):
        assert not FIRST_TOKEN[path].search(text), text


@pytest.mark.parametrize(
    ("path", "event"),
    [
        (CHAT, chat(content="h")),
        (CHAT, chat(content='"')),
        (CHAT, chat(reasoning_content="hm")),
        (CHAT, chat(role="assistant", reasoning="hm")),
        (CHAT, chat(refusal="no")),
        (CHAT, chat(content=[{"type": "text", "text": "h"}])),
        (CHAT, chat(tool_calls=[{"index": 0, "id": "1", "function": {"name": "f"}}])),
        (COMPLETIONS, {"choices": [{"index": 0, "text": " a"}]}),
        (MESSAGES, {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}),
        (
            MESSAGES,
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "a"}},
        ),
        (
            MESSAGES,
            {
                "type": "content_block_start",
                "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
            },
        ),
        (RESPONSES, {"type": "response.output_text.delta", "delta": "a"}),
        (RESPONSES, {"type": "response.reasoning_text.delta", "delta": "a"}),
        (
            RESPONSES,
            {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}},
        ),
    ],
)
def test_event_has_the_first_token(path: str, event: dict[str, Any]) -> None:
    for text in spelt(event):
        assert FIRST_TOKEN[path].search(text), text


@pytest.mark.parametrize("path", FIRST_TOKEN)
@pytest.mark.parametrize(
    "name", ['m","content":"x', '"text":"x"', '"delta":"x', "content", "é" * 100_000, "\\" * 99]
)
def test_model_name_with_a_token_pattern_is_not_a_first_token(path: str, name: str) -> None:
    for text in spelt({"model": name, "choices": [], "type": "x"}):
        assert not FIRST_TOKEN[path].search(text)


def spelt(event: dict[str, Any]) -> list[bytes]:
    """Return the event as compact and as spaced JSON."""
    return [
        json.dumps(event, separators=separators).encode()
        for separators in ((",", ":"), (", ", ": "))
    ]
