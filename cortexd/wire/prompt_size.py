"""A lower bound of the tokens in a prompt, from the words in its text.

Sound rather than close: a replica whose context is smaller than the bound can't hold the prompt.

- A token of a usual tokenizer never reaches over the space between two words. Those of SuperBPE
  do, but hold fewer than two words on average. So the bound is half of the words.
- What a chat template may drop is not counted: the assistant's messages (templates remove the
  reasoning in them), tool definitions, and all that is not text. A prompt that the engine may cut,
  and a request with several prompts, have no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

WORDS_PER_TOKEN: Final = 2
# A word has at least one byte, and one beside it that ends it.
BYTES_PER_TOKEN: Final = 2 * WORDS_PER_TOKEN
MAX_COUNTED: Final = 1024 * 1024  # characters; the words of a part are a lower bound as well

_NOTHING: Final = msgspec.Raw(b"")
_GIVEN: Final = frozenset({"user", "system", "developer", "tool"})


class _Part(msgspec.Struct):
    """A part of a content: a text, or the result of a tool."""

    type: str | None = None
    text: str | None = None
    content: msgspec.Raw = _NOTHING


class _Message(msgspec.Struct):
    """A message of a conversation; `output` is the result of a function call."""

    role: str | None = None
    type: str | None = None
    content: msgspec.Raw = _NOTHING
    output: msgspec.Raw = _NOTHING


class _Body(msgspec.Struct):
    messages: list[_Message] = []
    system: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    truncation: Any = None
    truncate_prompt_tokens: Any = None


_decode: Final = msgspec.json.Decoder(_Body).decode
_decode_text: Final = msgspec.json.Decoder(str).decode
_decode_parts: Final = msgspec.json.Decoder(list[_Part]).decode
_decode_items: Final = msgspec.json.Decoder(list[_Message]).decode


def least_tokens(path: str, body: bytes) -> int:
    """Return a lower bound of the number of tokens in the prompt; 0: no bound is known."""
    texts_of = _TEXTS.get(path)
    if texts_of is None:
        return 0
    words, left = 0, MAX_COUNTED
    try:
        view = _decode(body)
        if view.truncation not in (None, "disabled") or view.truncate_prompt_tokens is not None:
            return 0
        for text in texts_of(view):
            words += len(text[:left].split())
            left -= len(text)
            if left <= 0:
                # The last word may have been cut in two.
                return (words - 1) // WORDS_PER_TOKEN
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return words // WORDS_PER_TOKEN


def _chat(view: _Body) -> Iterator[str]:
    for message in view.messages:
        if message.role in _GIVEN:
            yield from _texts(message.content)


def _messages(view: _Body) -> Iterator[str]:
    yield from _texts(view.system)
    yield from _chat(view)


def _completions(view: _Body) -> Iterator[str]:
    if _first(view.prompt) == b'"':
        yield _decode_text(view.prompt)


def _responses(view: _Body) -> Iterator[str]:
    yield from _texts(view.instructions)
    if _first(view.input) != b"[":
        yield from _texts(view.input)
        return
    for item in _decode_items(view.input):
        if item.role in _GIVEN:
            yield from _texts(item.content)
        elif item.type == "function_call_output":
            yield from _texts(item.output)


_TEXTS: Final[Mapping[str, Callable[[_Body], Iterator[str]]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/messages": _messages,
    "/v1/responses": _responses,
}


def _texts(content: msgspec.Raw) -> Iterator[str]:
    """Yield the texts of a content, whole or in parts."""
    first = _first(content)
    if first == b'"':
        yield _decode_text(content)
    elif first == b"[":
        for part in _decode_parts(content):
            if part.text is not None:
                yield part.text
            elif part.type == "tool_result":
                yield from _texts(part.content)


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])
