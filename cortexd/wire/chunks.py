"""Empty chunks, which separate keep-alive comments from the answer in a completions stream.

No blank line follows a keep-alive comment, because some decoders dispatch an event at every blank
line. A client that splits a stream at blank lines and looks at the first characters of each block
would then take the comments and the first event after them for one block, and drop it. It drops an
empty chunk in place of that event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cortexd.wire import sse

_CHAT: Final = "/v1/chat/completions"
PATHS: Final = frozenset({_CHAT, "/v1/completions"})

# Fields that an empty chunk copies from the first chunk: a stream has one identity.
_IDENTITY: Final = ("id", "object", "created", "model", "system_fingerprint")
# Bytes of a first event that are held back until it is whole.
MAX_HELD: Final = 16 * 1024

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def empty_chunk(path: str, request_id: str, model: str, created: int) -> bytes:
    """Return an event without role and content. created: seconds since the epoch."""
    is_chat = path == _CHAT
    return _event(
        path,
        {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": created,
            "model": model,
        },
    )


class FirstChunk:
    """Puts an empty chunk before the first event of an answer if dropping that event loses content.

    The event is held back until it is whole. An empty chunk has its identity, and its role if it
    has one: some clients take the kind of the message from the first chunk they see, others
    concatenate roles, so a chunk that has only a role gets no other before it.
    fallback: the empty chunk for an event that can't be read.
    """

    def __init__(self, path: str, fallback: bytes) -> None:
        self._path = path
        self._fallback = fallback
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to send: none until the first event is whole."""
        held = self._held = self._held + data
        boundary = sse.BOUNDARY.search(held)
        if boundary is not None:
            return self._separator(held[: boundary.end()]) + self.rest()
        return self._fallback + self.rest() if len(held) > MAX_HELD else b""

    def rest(self) -> bytes:
        """Return the bytes that are held back."""
        rest, self._held = self._held, b""
        return rest

    def _separator(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if not data:  # comments: dropping them loses nothing
            return b""
        try:
            chunk = _decode(data)
            (choice,) = chunk["choices"]
            role = _role(choice) if self._path == _CHAT else None
            if _is_empty(choice):
                return b""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, *_UNLIKE_A_CHUNK):
            return self._fallback
        identity: dict[str, Any] = {name: chunk[name] for name in _IDENTITY if name in chunk}
        return _event(self._path, identity, role)


_UNLIKE_A_CHUNK: Final = (KeyError, ValueError, TypeError, AttributeError)


def _role(choice: Mapping[str, Any]) -> str | None:
    role = choice["delta"].get("role")
    return role if isinstance(role, str) else None


def _is_empty(choice: Mapping[str, Any]) -> bool:
    """Return whether there is nothing in it but a role."""
    said = choice.get("delta") or {}
    contents = [choice.get("text"), choice.get("finish_reason")]
    return not any(contents) and not any(said[name] for name in said if name != "role")


def _event(path: str, identity: dict[str, Any], role: str | None = None) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if path == _CHAT:
        choice["delta"] = {} if role is None else {"role": role}
    else:
        choice |= {"text": "", "logprobs": None}
    return b"data: %b\n\n" % msgspec.json.encode(identity | {"choices": [choice]})
