"""Token counts from the tail of an answer: `usage`, else llama.cpp's `timings`, else nothing.

Counts are never guessed: an answer that carries none yields None, and the caller counts that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer. `cached` is the part of `prompt` that came from the KV cache."""

    prompt: int
    completion: int
    cached: int = 0


# What is no such number is no count: a negative one could not be added up.
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Counts(msgspec.Struct):
    """OpenAI's and Anthropic's spellings of the same counts.

    Anthropic's `input_tokens` does not include tokens that its cache held or took.
    """

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Timings(msgspec.Struct):
    prompt_n: _Count | None = None
    predicted_n: _Count | None = None
    cache_n: _Count | None = None


class _Answer(msgspec.Struct):
    usage: _Counts | None = None
    timings: _Timings | None = None


class _Inner(msgspec.Struct):
    usage: _Counts | None = None


class _Event(_Answer):
    """A stream's event; Responses keeps `usage` in `response`, Anthropic in `message` too."""

    response: _Inner | None = None
    message: _Inner | None = None
    type: str | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_counts = msgspec.json.Decoder(_Counts).decode
_decode_timings = msgspec.json.Decoder(_Timings).decode


def from_body(tail: bytes, head: bytes = b"") -> Usage | None:
    """Counts of a JSON answer, from its last bytes (`tail` may begin anywhere in it).

    Engines that put them first have them in its first bytes, `head`.
    """
    if not head:  # then it is whole
        try:
            answer = _decode_answer(tail)
        except (msgspec.DecodeError, RecursionError):
            return _last_in(tail)
        if answer.usage and (found := _usage(answer.usage)):
            return found
        return _usage(answer.timings) if answer.timings else None
    return _last_in(tail) or (_last_in(head) if head else None)


def _last_in(tail: bytes) -> Usage | None:
    for key, decode in ((b'"usage"', _decode_counts), (b'"timings"', _decode_timings)):
        at = tail.rfind(key)
        while at >= 0:
            value = _object_after(tail, at + len(key))
            try:
                found = _usage(decode(value)) if value else None
            except (msgspec.DecodeError, RecursionError):
                found = None
            if found is not None:
                return found
            at = tail.rfind(key, 0, at)
    return None


def from_stream(tail: bytes, head: bytes = b"") -> Usage | None:
    """Counts of an SSE answer, from its last bytes: the last event that carries any.

    Anthropic splits them over two events: the prompt's stand in `message_start`, at the very
    beginning (`head`, or `tail` when that is all), the completion's in `message_delta`, at the end.
    Some engines repeat the prompt's there, as 0 or in part: the larger number counts.
    """
    timings: Usage | None = None
    for event in _events(tail):
        for holder in (event, event.response, event.message):
            if holder and holder.usage and (found := _usage(holder.usage)):
                counts = holder.usage
                if counts.prompt_tokens is None and (
                    event.type == "message_delta" or counts.input_tokens is None
                ):
                    return _joined(found, counts, head or tail)
                return found
        if timings is None and event.timings:
            timings = _usage(event.timings)
    if timings is None:
        # An event that is longer than the tail (a whole response in one) still ends with both.
        cut = _last_in(tail.partition(b"\n")[0])
        timings = cut if cut and cut.completion else None
    return timings


def _events(text: bytes) -> Iterator[_Event]:
    """The events of `text` that may carry counts, last first; what does not parse is no event."""
    for line in reversed(text.split(b"\n")):
        if line.startswith(b"data:") and (b'"usage"' in line or b'"timings"' in line):
            with suppress(msgspec.DecodeError, RecursionError):
                yield _decode_event(line[5:])


def _joined(end: Usage, counts: _Counts, head: bytes) -> Usage | None:
    """Return both counts in one. Without a prompt count in `end`, the first event must have it."""
    for event in _events(head):
        if event.message and event.message.usage and (start := _usage(event.message.usage)):
            return Usage(
                max(start.prompt, end.prompt), end.completion, max(start.cached, end.cached)
            )
    return None if counts.input_tokens is None else end


def _usage(counts: _Counts | _Timings) -> Usage | None:
    if isinstance(counts, _Timings):
        if counts.prompt_n is None and counts.predicted_n is None:
            return None
        # prompt_n counts what was evaluated; what the cache held comes on top.
        cached = counts.cache_n or 0
        return Usage((counts.prompt_n or 0) + cached, counts.predicted_n or 0, cached)
    prompt, completion = counts.prompt_tokens, counts.completion_tokens
    if prompt is None and completion is None:
        prompt, completion = counts.input_tokens, counts.output_tokens
    if prompt is None and completion is None:
        return None
    details = counts.prompt_tokens_details or counts.input_tokens_details
    read, created = counts.cache_read_input_tokens or 0, counts.cache_creation_input_tokens or 0
    if counts.prompt_tokens is None and details is None:
        prompt = (prompt or 0) + read + created
    cached = (details and details.cached_tokens) or read
    return Usage(prompt or 0, completion or 0, cached)


def _object_after(text: bytes, at: int) -> bytes | None:
    """The JSON object that follows a key, braces counted (counts hold no strings)."""
    start = text.find(b"{", at)
    if start < 0 or text[at:start].strip() != b":":
        return None
    end = start
    while (end := text.find(b"}", end) + 1) > 0:
        if text.count(b"{", start, end) == text.count(b"}", start, end):
            return text[start:end]
    return None
