"""The OpenAI shapes that the gateway itself reads or writes; bodies pass through untouched."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cortexd.wire.neuron import Cost, Limit

_NOTHING: Final = msgspec.Raw(b"")
_BOM: Final = b"\xef\xbb\xbf"


def without_bom(body: bytes) -> bytes:
    """Return a JSON text without its byte order mark, which some editors and languages write first.

    Senders must not add one, receivers may ignore it (RFC 8259, section 8.1); engines do not.
    """
    return body.removeprefix(_BOM)


class RequestView(msgspec.Struct, frozen=True):
    """The few top-level fields of an inference request that routing looks at.

    The same view reads an Anthropic body: both dialects spell these fields alike.
    """

    model: str
    stream: bool | None = None


class PromptView(msgspec.Struct, frozen=True):
    """Where a body has what its conversation begins with, unread: it may be anything.

    `system` is Anthropic's, `instructions` and `input` are those of Responses.
    """

    prompt_cache_key: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING


class Error(msgspec.Struct, frozen=True):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every OpenAI error answer."""

    error: Error


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """One node that knows a model."""

    node: str
    status: str
    vram_used_mb: int | float | None = None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of /v1/models: OpenAI's four fields, then what this fleet knows of the model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cortexd"
    loaded: bool
    status: str
    locations: list[Location]
    feasible_on: list[str]
    capabilities: list[str] | msgspec.UnsetType = msgspec.UNSET
    limit: Limit | msgspec.UnsetType = msgspec.UNSET
    max_model_len: int | msgspec.UnsetType = msgspec.UNSET
    context_length: int | msgspec.UnsetType = msgspec.UNSET
    cost: Cost | msgspec.UnsetType = msgspec.UNSET
    tool_call: bool | msgspec.UnsetType = msgspec.UNSET
    reasoning: bool | msgspec.UnsetType = msgspec.UNSET
    alias_of: str | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
