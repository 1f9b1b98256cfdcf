from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from cortexd.gateway.affinity import MOST, SESSION, Affinity, key_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PATHS = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)


def key(path: str, body: Any, session: str | None = None) -> int | None:
    return key_of(path, json.dumps(body).encode(), session)


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


LONG = "word " * 1000

# A first turn and a later one, by path.
CONVERSATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    CHAT: (
        {"messages": [said("system", "be kind"), said("user", "hi")]},
        {
            "messages": [
                said("system", "be kind"),
                said("user", "hi"),
                said("assistant", "hello"),
                said("user", "what now?"),
            ],
            "temperature": 1,
        },
    ),
    COMPLETIONS: ({"prompt": LONG}, {"prompt": LONG + "and then?"}),
    MESSAGES: (
        {"system": "be kind", "messages": [said("user", "hi")]},
        {"system": "be kind", "messages": [said("user", "hi"), said("assistant", "hello")]},
    ),
    RESPONSES: (
        {"instructions": "be kind", "input": [said("user", "hi")]},
        {"instructions": "be kind", "input": [said("user", "hi"), said("assistant", "hello")]},
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_turns_of_a_conversation_have_one_key(path: str) -> None:
    first, later = CONVERSATIONS[path]
    assert key(path, first) == key(path, later) is not None


@pytest.mark.parametrize("path", PATHS)
def test_the_callers_own_word_comes_first(path: str) -> None:
    first, later = CONVERSATIONS[path]
    own = {"prompt_cache_key": "mine"}
    assert key(path, first | own) == key(path, {} | own, session="s")
    assert key(path, first | own) != key(path, first)
    assert key(path, first, session="s") == key(path, {}, session="s")
    assert key(path, first, session="s") not in {key(path, later), key(path, {}, session="t")}


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        (CHAT, {"messages": [said("user", "a")]}, {"messages": [said("user", "b")]}),
        (
            CHAT,
            {"messages": [said("system", "s"), said("user", "a")]},
            {"messages": [said("system", "t"), said("user", "a")]},
        ),
        (
            CHAT,
            {"messages": [said("developer", "s"), said("user", "a")]},
            {"messages": [said("user", "a")]},
        ),
        (
            CHAT,
            {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "a"}}])]},
            {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "b"}}])]},
        ),
        (COMPLETIONS, {"prompt": "a"}, {"prompt": "b"}),
        (COMPLETIONS, {"prompt": [1, 2]}, {"prompt": [1, 3]}),
        (
            MESSAGES,
            {"system": "s", "messages": [said("user", "a")]},
            {"system": "t", "messages": [said("user", "a")]},
        ),
        (RESPONSES, {"input": "a"}, {"input": "b"}),
        (RESPONSES, {"instructions": "s", "input": "a"}, {"instructions": "t", "input": "a"}),
    ],
)
def test_other_words_have_another_key(path: str, one: Any, other: Any) -> None:
    assert None not in (key(path, one), key(path, other))
    assert key(path, one) != key(path, other)


def test_a_text_is_the_same_in_one_piece_or_in_parts() -> None:
    whole = {"system": "s", "messages": [said("user", "hi")]}
    parts = {
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": [said("user", [{"type": "text", "text": "hi"}])],
    }
    assert key(MESSAGES, whole) == key(MESSAGES, parts)
    assert key(RESPONSES, {"input": "hi"}) == key(
        RESPONSES, {"input": [said("user", [{"type": "input_text", "text": "hi"}])]}
    )


def test_a_mark_of_what_to_cache_moves_nobody() -> None:
    def asked(mark: Mapping[str, Any]) -> dict[str, Any]:
        parts = [{"type": "image", "source": "x"} | mark, {"type": "text", "text": "hi"} | mark]
        return {"messages": [said("user", parts)]}

    assert key(MESSAGES, asked({"cache_control": {"type": "ephemeral"}})) == key(
        MESSAGES, asked({})
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": None}),
        (CHAT, {"messages": "hi"}),
        (CHAT, {"messages": {"role": "user"}}),
        (CHAT, {"messages": [1, None, "x", [], {"role": {}}, {"role": ["user"]}]}),
        (CHAT, {"messages": [said("assistant", "hi")]}),
        (CHAT, {"messages": [said("user", 5)]}),
        (CHAT, {"messages": [said("user", "")]}),
        (CHAT, {"prompt_cache_key": 5}),
        (CHAT, {"prompt_cache_key": ""}),
        (COMPLETIONS, {"prompt": None}),
        (COMPLETIONS, {"prompt": 5}),
        (COMPLETIONS, {"prompt": ""}),
        (COMPLETIONS, {"prompt": []}),
        (MESSAGES, {"system": 5}),
        (RESPONSES, {"input": 5, "instructions": None}),
        (CHAT, []),
        (CHAT, 5),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/rerank", {"prompt_cache_key": "x"}),
    ],
)
def test_what_says_nothing_has_no_key(path: str, body: Any) -> None:
    assert key(path, body) is None
    assert key(path, body, session="s") is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"messages": "\xff"}',
        b"------form",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_no_json_of_ours_has_no_key(path: str, body: bytes) -> None:
    assert key_of(path, body, None) is None


def test_what_python_can_not_read_is_taken_as_it_stands() -> None:
    """A number of more digits than it allows, for one."""
    digits = b'{"messages": [%b, {"role": "user"}], "n": %d}'
    one, again = (digits % (b"1" * 5000, n) for n in (1, 2))
    assert key_of(CHAT, one, None) == key_of(CHAT, again, None) is not None


def test_of_a_beginning_that_is_very_long_only_its_start_counts() -> None:
    def asked(end: str, *more: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [said("system", "s"), said("user", "x" * MOST + end), *more]}

    assert key(CHAT, asked("a")) == key(CHAT, asked("b", said("user", "more"))) is not None
    assert key(MESSAGES, {"system": "x" * MOST + "a"}) == key(MESSAGES, {"system": "x" * MOST})


def test_letters_cut_in_two_are_no_error() -> None:
    for shift in range(4):
        assert key(CHAT, {"messages": [said("user", "x" * shift + "😀" * MOST)]}) is not None


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "system", "role", "content"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "cache_control", "x"]), inner
        )
    ),
    max_leaves=20,
)
bodies = st.dictionaries(
    st.sampled_from(
        ["messages", "system", "prompt", "instructions", "input", "prompt_cache_key", "model"]
    ),
    anything | st.lists(anything, max_size=4),
)


@given(st.sampled_from(PATHS), bodies | anything, st.none() | st.text(), st.booleans())
def test_no_json_ever_raises(path: str, body: Any, session: str | None, pretty: bool) -> None:
    raw = json.dumps(body, indent=2 if pretty else None).encode()
    found = key_of(path, raw, session)
    assert found is None or 0 <= found < 2**64
    assert found == key_of(path, raw, session)


@given(st.sampled_from(PATHS), st.binary(max_size=200))
def test_no_bytes_ever_raise(path: str, body: bytes) -> None:
    for raw in (body, b'{"messages": [{"role": "user", "content": "' + body + b'"}]}'):
        found = key_of(path, raw, None)
        assert found is None or 0 <= found < 2**64


@given(bodies)
def test_the_space_between_the_words_is_nothing(body: Any) -> None:
    compact = json.dumps(body, separators=(",", ":")).encode()
    wide = json.dumps(body, indent=3).encode()
    assert key_of(CHAT, compact, None) == key_of(CHAT, wide, None)


class Headers:
    """A request with headers; counts how often they are looked at."""

    looked_at = 0

    @property
    def headers(self) -> dict[str, str]:
        self.looked_at += 1
        return {SESSION: "s"}


def test_a_key_is_found_out_when_it_is_asked_for_and_once() -> None:
    request = Headers()
    affinity = Affinity(cast(web.BaseRequest, request), CHAT, b"{}")
    assert request.looked_at == 0
    assert affinity() == affinity() == key_of(CHAT, b"{}", "s")
    assert request.looked_at == 1
