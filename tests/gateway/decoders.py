"""Event stream decoders, written after the sources of the clients they are named for.

Each returns the (name, data) of the events that it sees, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

Event = tuple[str | None, str]
Decode = Callable[[str], list[Event]]


def standard(text: str) -> list[Event]:
    """eventsource-parser (ai-sdk), httpx-sse, openai-go from 3.43: as the HTML standard says."""
    return [event for event in _blocks(text) if event[1] != ""]


def every_blank_line(text: str) -> list[Event]:
    """openai-go to 3.42, anthropic-sdk-go: every blank line is an event, data or not."""
    return _blocks(text)


def with_name_or_data(text: str) -> list[Event]:
    """openai-node, openai-python, both of Anthropic: an event has a name or data."""
    found, name, data = [], None, list[str]()
    for line in text.replace("\r\n", "\n").split("\n")[:-1]:
        if not line:
            if name or data:
                found.append((name, "\n".join(data)))
            name, data = None, []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
    return found


def first_characters(text: str) -> list[Event]:
    """Hand-written ones: split at blank lines, and only what begins like an event counts."""
    found: list[Event] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        if block.startswith("data:"):
            found.append((None, block[5:].strip()))
        elif block.startswith("event:"):
            found += _named(block)
    return found


def stripped_blocks(text: str) -> list[Event]:
    """The same, after `strip` or `trim`."""
    return first_characters("\n\n".join(block.strip() for block in text.split("\n\n")))


def lines_of_blocks(text: str) -> list[Event]:
    """Split at blank lines, then look at the lines of each block."""
    found: list[Event] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        found += _named(block)
    return found


def line_by_line(text: str) -> list[Event]:
    """llama.cpp's web page, aiohttp and requests scripts: whatever line begins with `data:`."""
    found, name = list[Event](), None
    for line in text.splitlines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            found.append((name, line[5:].strip()))
            name = None
    return found


DECODERS: Final[tuple[Decode, ...]] = (
    standard,
    every_blank_line,
    with_name_or_data,
    first_characters,
    stripped_blocks,
    lines_of_blocks,
    line_by_line,
)


def parsed(events: list[Event]) -> list[dict[str, Any]]:
    """Return the data of the events before `[DONE]`. Raises ValueError on one that is not JSON."""
    found: list[dict[str, Any]] = []
    for _, data in events:
        if data == "[DONE]":
            break
        found.append(json.loads(data))
    return found


def langchain_js(chunks: list[dict[str, Any]]) -> tuple[str | None, str]:
    """Return the role of a message and its text, as @langchain/openai puts them together.

    The first chunk that has a delta makes the message.
    """
    roles: list[str | None] = []
    text, known = "", None
    for chunk in chunks:
        if not chunk["choices"] or not (delta := chunk["choices"][0].get("delta")) is not None:
            continue
        known = delta.get("role", known)
        roles.append(known)
        text += delta.get("content") or ""
    return roles[0], text


def concatenated(chunks: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Return the id, role and text of openai-python's `stream()`: strings are added up."""
    role = text = ""
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        role += delta.get("role") or ""
        text += delta.get("content") or ""
    return chunks[0]["id"], role, text


def _named(block: str) -> list[Event]:
    name, data = None, list[str]()
    for line in block.split("\n"):
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data.append(line[5:].strip())
    return [(name, "\n".join(data))] if data else []


def _blocks(text: str) -> list[Event]:
    found, name, data = list[Event](), None, list[str]()
    for line in text.replace("\r\n", "\n").split("\n")[:-1]:
        if not line:
            found.append((name, "\n".join(data)))
            name, data = None, []
        elif line.startswith("event:"):
            name = line[6:].removeprefix(" ")
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    return found
