"""Server-sent events: their form, and the removal of an engine's usage event."""

from __future__ import annotations

import re
from typing import Final

import msgspec

# An event in pieces is held back until it is whole; one of this many bytes is passed on as it is.
MAX_EVENT: Final = 64 * 1024

BOUNDARY: Final = re.compile(rb"\r?\n\r?\n")


_decode_chunk: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Fields of every chunk, which alone say nothing.
_COMMON: Final = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "choices", "usage"}
)
_NULL: Final = b"null"
_EMPTY_DELTA: Final = msgspec.Raw(b'[{"index":0,"delta":{},"finish_reason":null}]')
_EMPTY_TEXT: Final = msgspec.Raw(b'[{"index":0,"text":"","logprobs":null,"finish_reason":null}]')


def event(name: str, data: bytes) -> bytes:
    """One event. `data`: one line, as JSON is."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def data_of(event: bytes) -> bytes:
    """Return the data of one event; none for a block of comments."""
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def after(tail: bytes, event: bytes, *, is_whole: bool) -> bytes:
    """Return the bytes that add `event` to a stream that may have broken off within another event.

    A blank line ends an event that has data. If there is none to end, it would be an event
    without data, which some decoders dispatch and then fail to parse.
    tail: the last bytes of the stream. is_whole: they are all of it.
    """
    end = b"\n" if tail.endswith(b"\r") else b""
    text = tail + end
    at = None
    for boundary in BOUNDARY.finditer(text):
        at = boundary.end()
    cut = text[at:]
    if at is None and not is_whole:  # it began before the tail, with data most likely
        return end + (b"\n" if cut.endswith(b"\n") else b"\n\n") + event
    if event.startswith(cut):
        return end + event[len(cut) :]
    if not cut.endswith(b"\n"):
        end += b"\n"
    return end + (b"\n" if data_of(cut).strip() else b"") + event


class UsageRemover:
    """Takes out the usage that the client did not ask for, if it has an event of its own.

    Anything else in that event (llama.cpp's `timings`) is passed on, with an empty choice: a client
    that did not ask for usage expects one in every chunk.
    taken: that event as it arrived.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.taken = b""

    def feed(self, data: bytes) -> bytes:
        """What of the stream may go on after these bytes came."""
        text = self._rest + data
        done = []
        at = 0
        # What was held back has no boundary in it, but one may begin at its end.
        for boundary in BOUNDARY.finditer(text, max(0, len(self._rest) - 3)):
            event = text[at : boundary.end()]
            at = boundary.end()
            rest = _without_usage(event)
            if rest is not event:
                self.taken = event
            if rest:
                done.append(rest)
        self._rest = text[at:]
        if len(self._rest) > MAX_EVENT:
            done.append(self.rest())
        return b"".join(done)

    def rest(self) -> bytes:
        """What was held back; the stream is over."""
        rest, self._rest = self._rest, b""
        return rest


def _without_usage(event: bytes) -> bytes:
    """Return a usage-only event without its usage, and any other event unchanged."""
    if not event.startswith(b"data:") or b'"usage"' not in event:
        return event
    try:
        chunk = _decode_chunk(event[5:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event
    if bytes(chunk.get("choices", b"")).strip(b"[] \t\r\n") or "choices" not in chunk:
        return event
    if not bytes(chunk.get("usage", b"")).startswith(b"{"):
        return event
    if all(name in _COMMON or bytes(value) == _NULL for name, value in chunk.items()):
        return b""
    del chunk["usage"]
    is_text = bytes(chunk.get("object", b"")) == b'"text_completion"'
    chunk["choices"] = _EMPTY_TEXT if is_text else _EMPTY_DELTA
    return b"data: %b\n\n" % msgspec.json.encode(chunk)
