"""The wire between gateway and neuron, for both sides: JSON over HTTP/1.1.

Sizes named `*_mb` are MiB. Fields without a default are the ones a neuron must send; in every
other field `null` means absent, and unknown fields are ignored, because older and newer neurons
mix during a rolling upgrade. Do not rename a field: other neurons speak this wire too.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import msgspec

Number = int | float

# What a model listed under /models can be; any other word is kept as UNKNOWN.
LOADED: Final = "loaded"  # weights resident
UNLOADED: Final = "unloaded"  # known: the node reloads it by itself on the next request
RELOADING: Final = "reloading"  # coming back: the node holds the request meanwhile
LOADING: Final = "loading"  # a load is under way: join it, never start a second one
RECOVERING: Final = "recovering"  # being rebuilt: hold the route
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"
STATUSES: Final = frozenset({LOADED, UNLOADED, RELOADING, LOADING, RECOVERING, FAILED})

MAX_BODY: Final = 8 * 1024 * 1024  # bytes; a longer answer from a neuron is a failed poll
# Entries of `Discovery.loadable`, whose files come to three names each; a longer list is ignored.
MAX_LOADABLE: Final = 4096
MAX_TEXT: Final = 400  # characters that are kept of what a node says for people to read


class Limit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token limits of a model."""

    context: int | None = None
    input: int | None = None
    output: int | None = None


class Cost(msgspec.Struct, frozen=True, omit_defaults=True):
    """Price per million tokens; absent is not zero."""

    input: Number | None = None
    output: Number | None = None


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device as /discovery describes it; it does not change while the neuron lives."""

    index: int
    vram_total_mb: Number
    name: str | None = None
    compute_capability: str | None = None
    kind: str | None = None  # "cpu" for a host without a GPU; absent means a GPU


class Loadable(msgspec.Struct, frozen=True):
    """A model that a node could load, by an id that POST /models/load takes.

    quants: in upper case, as the file names spell them, "" for a file that names none; absent: the
        load may name any.
    """

    id: str
    quants: list[str] | None = None


class Discovery(msgspec.Struct, frozen=True):
    """GET /discovery. A `cuda_unavailable_reason` says why nothing can load on that host.

    loadable: every model that the node could load; absent: it does not say. loadable_version:
    another text whenever `loadable` has changed; /health repeats it.
    """

    devices: list[DeviceInfo]
    hostname: str | None = None
    os: str | None = None
    kernel: str | None = None
    cuda_version: str | None = None
    driver_version: str | None = None
    harnesses: list[str] | None = None
    cuda_unavailable_reason: str | None = None
    max_prompt_tokens: int | None = None
    loadable: list[Loadable] | None = None
    loadable_version: str | None = None


class DeviceHealth(msgspec.Struct, frozen=True):
    """A device's gauges."""

    index: int
    vram_used_mb: Number | None = None
    vram_free_mb: Number | None = None
    utilization_pct: Number | None = None
    temp_c: Number | None = None


class FailedActivation(msgspec.Struct, frozen=True):
    """A model that could not be pre-warmed."""

    model_id: str
    error: str | None = None


class Activation(msgspec.Struct, frozen=True):
    """What a neuron loads by itself after its start. `state`: pre_warming or ready."""

    state: str | None = None
    pending: list[str] | None = None
    in_progress: str | None = None
    completed: list[str] | None = None
    failed: list[FailedActivation] | None = None


class ModelLoad(msgspec.Struct, frozen=True):
    """How busy one loaded model is. A `max_in_flight` of 0 means unknown."""

    id: str
    in_flight: int | None = None
    queue_depth: int | None = None
    max_in_flight: int | None = None
    max_queue_depth: int | None = None
    rejected_queue_full: int | None = None
    rejected_timeout: int | None = None
    tok_s_prefill: Number | None = None
    tok_s_decode: Number | None = None


class Health(msgspec.Struct, frozen=True):
    """GET /health. If `loadable_version` differs from that of /discovery, ask /discovery again."""

    uptime_secs: Number | None = None
    devices: list[DeviceHealth] | None = None
    activation: Activation | None = None
    models: list[ModelLoad] | None = None
    loadable_version: str | None = None


class Servable(msgspec.Struct, frozen=True):
    """Whether a resident model can answer; absent is never "broken"."""

    ok: bool | None = None
    reason: str | None = None
    detail: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """How far a load is: `stage` download, weights or warmup; `fraction` 0 to 1."""

    stage: str | None = None
    fraction: Number | None = None


class Model(msgspec.Struct, frozen=True):
    """One entry of GET /models."""

    id: str
    status: str
    harness: str | None = None
    devices: list[int] | None = None
    vram_used_mb: Number | None = None
    capabilities: list[str] | None = None
    limit: Limit | None = None
    cost: Cost | None = None
    tool_call: bool | None = None
    reasoning: bool | None = None
    servable: Servable | None = None
    progress: Progress | None = None
    error: str | None = None


class LoadRequest(msgspec.Struct, frozen=True):
    """POST /models/load. `model_id` is `source:id` when the profile has a source."""

    model_id: str
    harness: str | None = None
    quant: str | None = None
    tensor_parallel: int | None = None
    devices: list[int] | None = None


class UnloadRequest(msgspec.Struct, frozen=True):
    """POST /models/unload. `if_idle` asks for 409 `busy` rather than a cut request."""

    model_id: str
    if_idle: bool | None = None


class StatusAnswer(msgspec.Struct, frozen=True):
    """The answer to a load or an unload: loaded, loading or unloaded."""

    status: str


class Endpoint(msgspec.Struct, frozen=True):
    """GET /models/{id}/endpoint: the base to append `/v1/...` to."""

    url: str


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error answer of our neuron. `code`: insufficient_vram, busy, cuda_unavailable, ..."""

    error: str
    code: str | None = None


def endpoint_path(model: str) -> str:
    """The path that asks where `model` is served: the id is one segment, percent-encoded whole."""
    return f"/models/{quote(model, safe='')}/endpoint"


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Return a node's words as one line without control characters, cut to `limit` characters.

    Without a full stop at the end, since the words are quoted within sentences.
    """
    words = " ".join(text.split()).rstrip(". ")
    if not words.isprintable():
        words = "".join(char if char.isprintable() else "?" for char in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"


def fault_text(body: bytes) -> tuple[str, str | None]:
    """The node's own words in an error body, and its code if it gave one.

    `error` may be a string or an object with a `message`; anything else is quoted as it came.
    """
    words, code = body.decode("utf-8", "replace").strip(), None
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error", answer.get("message"))
        inner = error if isinstance(error, dict) else {}
        if isinstance(said := inner.get("message", error), str):
            words = said
        found = answer.get("code", inner.get("code"))
        code = found[:MAX_TEXT] if isinstance(found, str) else None
    return plain(words), code
