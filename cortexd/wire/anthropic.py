"""The Anthropic shapes that the gateway itself writes."""

from __future__ import annotations

from typing import Literal

import msgspec


class Error(msgspec.Struct, frozen=True):
    """What went wrong, in Anthropic's words."""

    type: str
    message: str


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every Anthropic error answer."""

    error: Error
    request_id: str
    type: Literal["error"] = "error"
