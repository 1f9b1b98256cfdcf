"""The node that has a response of the Responses API, by the ids in the answers of nodes.

Engines keep responses in their own memory: a request that continues one, or asks for it, has to go
to the node that made it. Decides nothing; `fleet.routing` reads the node from the query.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cortexd import errors
from cortexd.control.dispatch import RouteDecision
from cortexd.errors import Refusal
from cortexd.proxy.splice import Splice
from cortexd.wire import responses

MAX_RESPONSES: Final = 10_000  # ids that are remembered; some 300 bytes each
PREFIX: Final = responses.PATH + "/"

_ITEM: Final = re.compile(r"/v1/responses/([A-Za-z0-9_.:-]{1,256})(/cancel|/input_items)?")
# What may follow the id, and the methods for it.
_METHODS: Final[Mapping[str | None, tuple[str, ...]]] = {
    None: ("GET", "DELETE"),
    "/input_items": ("GET",),
    "/cancel": ("POST",),
}

Place = tuple[str, str]


class StoredResponses:
    """A bounded map from response id to (node, model), the least recently used forgotten first."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._unread: dict[Splice, Place] = {}  # answers under way whose id is not known yet

    def __len__(self) -> int:
        return len(self._places)

    def begin(self, splice: Splice, route: RouteDecision) -> None:
        """Expect the answer to a `POST /v1/responses` from `route`; a retry replaces the route."""
        self._unread[splice] = route.node, route.replica.model

    def end(self, splice: Splice) -> None:
        """Remember the response of an answer that has ended."""
        if splice in self._unread:
            self._read(splice)
            self._unread.pop(splice, None)

    def find(self, response: str) -> Place | None:
        """Return the node and the model that made a response; streams under way count as well."""
        if response not in self._places:
            for splice in list(self._unread):
                self._read(splice)
        place = self._places.pop(response, None)
        if place is not None:
            self._places[response] = place
        return place

    def _read(self, splice: Splice) -> None:
        """Take the id from the first bytes of an answer, if they are there."""
        if splice.status != 200 or splice.first_at is None:
            return
        response = responses.response_id(splice.first or splice.tail)
        if response is None:
            return
        self._places.pop(response, None)
        self._places[response] = self._unread.pop(splice)
        if len(self._places) > MAX_RESPONSES:
            del self._places[next(iter(self._places))]


def requested_response(method: str, path: str) -> str:
    """Return the id in the path of a request for one response.

    Raises Refusal (unknown_route, method_not_allowed) for anything else.
    """
    match = _ITEM.fullmatch(path)
    if match is None:
        raise Refusal(
            errors.UNKNOWN_ROUTE,
            f"There is no {method} {path[:200]} here; a response is at {PREFIX}ID.",
        )
    allowed = _METHODS[match[2]]
    if method not in allowed:
        raise Refusal(
            errors.METHOD_NOT_ALLOWED,
            f"{path} takes {' or '.join(allowed)}.",
            allow=(*allowed, "OPTIONS"),
        )
    return match[1]


def response_not_found(response: str) -> Refusal:
    """Return the refusal of a request for a response that no node is known to have."""
    return Refusal(
        errors.RESPONSE_NOT_FOUND,
        f"The gateway does not know which node has the response {response!r}: it was not made "
        f"through this gateway since it started, or is older than its last {MAX_RESPONSES:,} "
        "responses. Send the request again to have a new one made.",
    )
