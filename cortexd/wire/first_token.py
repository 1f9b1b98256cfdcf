"""Patterns for the first token of an event stream, by path: found without decoding JSON.

The pattern is a key with a value that is not empty. A key can't be faked from inside a JSON string
(a model's name, say): its closing quote and colon would be escaped there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_VALUE: Final = rb'[ \t]*:[ \t]*"[^"]'  # a string that is not empty

_CHAT: Final = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|thinking|refusal|transcript)"'
    + _VALUE
    + rb'|"tool_calls"[ \t]*:[ \t]*\[[ \t]*\{|"function_call"[ \t]*:[ \t]*\{'
)
_COMPLETIONS: Final = re.compile(rb'"text"' + _VALUE)
_MESSAGES: Final = re.compile(
    rb'"(?:text|thinking|partial_json)"'
    + _VALUE
    + rb'|"type"[ \t]*:[ \t]*"(?:tool_use|server_tool_use|redacted_thinking)"'
)
_RESPONSES: Final = re.compile(
    rb'"delta"'
    + _VALUE
    + rb'|"type"[ \t]*:[ \t]*"(?:function_call|custom_tool_call|mcp_call|web_search_call)"'
)

# Path → what the first content, reasoning or tool delta of its streams contains.
FIRST_TOKEN: Final[Mapping[str, re.Pattern[bytes]]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETIONS,
    "/v1/messages": _MESSAGES,
    "/v1/responses": _RESPONSES,
}
OVERLAP: Final = 64  # bytes of a piece to search again with the next one; no match is longer
