"""What the gateway refuses, and how it says so: status, code and retry hint, in one place.

A refusal is data first: the pure floors return it, the floors with effects raise it, and
`gateway.refusals` alone turns it into the caller's error envelope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be refused.

    code: the machine-readable name, also sent as `x-cortex-code`.
    status: HTTP status; the Anthropic faces answer 529 where this is 503.
    retry_after: seconds a client should wait, sent as `Retry-After`.
    should_retry: False adds `x-should-retry: false`: asking again can never help.
    """

    code: str
    status: int
    retry_after: int | None = None
    should_retry: bool = True


# The caller's mistakes.
INVALID_JSON = Kind("invalid_json", 400)
MISSING_MODEL = Kind("missing_model", 400)
INVALID_VALUE = Kind("invalid_value", 400)
BAD_REQUEST = Kind("bad_request", 400)
FORBIDDEN_HOST = Kind("forbidden_host", 403)
FORBIDDEN_ORIGIN = Kind("forbidden_origin", 403)
UNKNOWN_ROUTE = Kind("unknown_route", 404)
RESPONSE_NOT_FOUND = Kind("response_not_found", 404)
UNKNOWN_NODE = Kind("unknown_node", 404)
METHOD_NOT_ALLOWED = Kind("method_not_allowed", 405)
BUSY = Kind("busy", 409)
REQUEST_TOO_LARGE = Kind("request_too_large", 413)
URI_TOO_LONG = Kind("uri_too_long", 414)
UNSUPPORTED_ENCODING = Kind("unsupported_encoding", 415)
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported_media_type", 415)
RELOAD_FAILED = Kind("reload_failed", 422)
UPGRADE_REQUIRED = Kind("upgrade_required", 426, should_retry=False)
HEAD_TOO_LARGE = Kind("head_too_large", 431)

# Where a model could be, and why it is not there. `fleet.routing` checks these in this order.
# A refusal that only an operator can cure is a 4xx: SDKs and agents repeat every 408, 409, 429 and
# 5xx for minutes, and few of them read `x-should-retry`.
NO_HEALTHY_NODES = Kind("no_healthy_nodes", 503, 5)
FEASIBLE_NODE_UNHEALTHY = Kind("feasible_node_unhealthy", 503, 3)
MODEL_UNSERVABLE = Kind("model_unservable", 503, 5)
MODEL_RECOVERING = Kind("model_recovering", 503, 2)
MODEL_NOT_FOUND = Kind("model_not_found", 404)
NO_FEASIBLE_NEURON = Kind("no_feasible_neuron", 422, should_retry=False)
NO_ROOM = Kind("no_room", 503, 10)
COLD_LOAD_FAILED = Kind("cold_load_failed", 502)  # Retry-After: what is left of the back-off
MODEL_LOADING = Kind("model_loading", 503, 10)
# For a request that only counts tokens: its client should go on without, not wait for a load.
MODEL_NOT_LOADED = Kind("model_not_loaded", 503)
UNLOAD_FAILED = Kind("unload_failed", 502)
LOAD_QUEUE_FULL = Kind("load_queue_full", 503, 5)
ENDPOINT_RESOLVE_FAILED = Kind("endpoint_resolve_failed", 502, 2)
ENDPOINT_REFUSED = Kind("endpoint_refused", 422, should_retry=False)
LOOP_DETECTED = Kind("loop_detected", 422, should_retry=False)
UPSTREAM_FAILED = Kind("upstream_failed", 502, 1)
UPSTREAM_TIMEOUT = Kind("upstream_timeout", 504, 1)
UPSTREAM_INTERRUPTED = Kind("upstream_interrupted", 502)  # said at the end of a broken stream

# Our own limits and mistakes.
OVERLOADED = Kind("overloaded", 503, 1)
SHUTTING_DOWN = Kind("shutting_down", 503, 1)
INTERNAL_ERROR = Kind("internal_error", 500)

KINDS: dict[str, Kind] = {
    kind.code: kind for kind in list(globals().values()) if isinstance(kind, Kind)
}


class Refusal(Exception):
    """A request that will not be served, and what its caller can do about it.

    message: one or two sentences for a person; the last one says what to do next.
    param: the field of the request that is at fault, if one is.
    retry_after: whole seconds; overrides the kind's own.
    allow: the methods that the path takes, if another one was used.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.allow = allow
        self.retry_after = kind.retry_after if retry_after is None else retry_after

    def again(self) -> Refusal:
        """The same for another request: one that is raised twice collects both tracebacks."""
        return Refusal(
            self.kind,
            self.message,
            param=self.param,
            retry_after=self.retry_after,
            allow=self.allow,
        )

    def __repr__(self) -> str:
        return f"<Refusal {self.kind.status} {self.kind.code}: {self.message}>"
