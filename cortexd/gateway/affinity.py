"""What a request belongs to: a key that the turns of one conversation share, so that all of them
reach the replica that has read its beginning already.

Nothing in a body is an error here: what can't be understood has no key. Only as much of it is
read as is needed, and only when somebody asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from cortexd.fleet.choice import hashed
from cortexd.wire.openai import PromptView
from cortexd.wire.prompt_size import BYTES_PER_TOKEN, least_tokens

# Bytes of a list of messages, or of another text, that are looked at: those who have that much in
# common are well off on one replica, whatever follows.
MOST: Final = 64 * 1024
# Of a prompt in one piece, whose turns only share their beginning. A shorter one is soon read.
MOST_OF_PROMPT: Final = 2048

SESSION: Final = "x-session-id"

_decode_view: Final = msgspec.json.Decoder(PromptView).decode
_decode_next: Final = json.JSONDecoder().raw_decode
_space: Final = json.decoder.WHITESPACE.match  # type: ignore[attr-defined]


class Affinity:
    """The affinity key and the size of one request, each computed when first asked for and kept."""

    __slots__ = ("_asked", "_body", "_key", "_least", "_path", "_request")

    def __init__(self, request: web.BaseRequest, path: str, body: bytes) -> None:
        self._request = request
        self._path = path
        self._body = body
        self._asked = False
        self._key: int | None = None
        self._least: int | None = None

    def __call__(self) -> int | None:
        """The key; None: it has none."""
        if not self._asked:
            self._asked = True
            self._key = key_of(self._path, self._body, self._request.headers.get(SESSION))
        return self._key

    def could_fit(self, context: int) -> bool:
        """Return whether a context of so many tokens could hold the prompt."""
        if len(self._body) <= BYTES_PER_TOKEN * context:
            return True
        if self._least is None:
            self._least = least_tokens(self._path, self._body)
        return self._least <= context


def key_of(path: str, body: bytes, session: str | None) -> int | None:
    """The key of a request: the caller's own word for it, else how its conversation begins."""
    begins = _BEGINNINGS.get(path)
    view = _view(body) if begins is not None else None
    if view is not None and (given := _given(view.prompt_cache_key)):
        return hashed(b"prompt_cache_key", _encoded(given))
    if session:
        return hashed(b"session", _encoded(session))
    if view is None or begins is None:
        return None
    beginning = [_encoded(words) for words in begins(view) if words]
    return hashed(b"beginning", *beginning) if beginning else None


def _view(body: bytes) -> PromptView | None:
    try:
        return _decode_view(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _given(key: msgspec.Raw) -> str:
    return _of_text(key) if _start(key, 1) == '"' else ""


def _chat(view: PromptView) -> list[str]:
    return _of_messages(view.messages)


def _messages(view: PromptView) -> list[str]:
    return [_of_text(view.system), *_of_messages(view.messages)]


def _responses(view: PromptView) -> list[str]:
    given = _start(view.input)
    asked = _of_messages(view.input) if given.startswith("[") else [_of_text(view.input)]
    return [_of_text(view.instructions), *asked]


def _completions(view: PromptView) -> list[str]:
    start = _start(view.prompt, MOST_OF_PROMPT)
    return [start] if start.startswith(("[", '"')) and start not in {"[]", '""'} else []


_BEGINNINGS: Final[Mapping[str, Callable[[PromptView], list[str]]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/messages": _messages,
    "/v1/responses": _responses,
}


def _of_messages(messages: msgspec.Raw) -> list[str]:
    """The system's words and those of the first user. What is too long is taken as it stands."""
    start, at, found = _start(messages), 0, []
    try:
        for message, end in _elements(start):
            role = message.get("role") if isinstance(message, dict) else None
            if role in ("user", "system", "developer"):
                found.append(_words(message.get("content")))
                if role == "user":
                    return found
            at = end
    except (ValueError, RecursionError):
        found.append(start[at:])
    return found


def _of_text(text: msgspec.Raw) -> str:
    """A text, whole or in parts."""
    start = _start(text)
    try:
        return _words(_decode_next(start)[0])
    except (ValueError, RecursionError):
        return start


def _words(content: Any) -> str:
    """What a message says. A picture, say, is words, too; a mark of what to cache is not, since
    clients move it on from turn to turn."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    said = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            if isinstance(part, dict):
                part.pop("cache_control", None)
            text = repr(part)
        said.append(text)
    return "\n".join(said)


def _start(raw: msgspec.Raw, most: int = MOST) -> str:
    return bytes(memoryview(raw)[:most]).decode(errors="ignore")


def _elements(array: str) -> Iterator[tuple[Any, int]]:
    """The elements of an array, one by one, and where each ends. Raises ValueError,
    RecursionError."""
    if not array.startswith("["):
        return
    at = _space(array, 1).end()
    while array[at : at + 1] != "]":
        element, end = _decode_next(array, at)
        yield element, end
        at = _space(array, end).end()
        if array[at : at + 1] == ",":
            at = _space(array, at + 1).end()


def _encoded(words: str) -> bytes:
    return words.encode(errors="surrogatepass")
