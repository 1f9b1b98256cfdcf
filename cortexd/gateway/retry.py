"""Whether a request may be tried again, and where: never once an answer has been passed on."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

import msgspec

from cortexd.control.dispatch import Dispatcher, RouteDecision
from cortexd.control.liveness import BACK_PRESSURE
from cortexd.fleet.routing import Query
from cortexd.proxy.answer import UpstreamFault, What
from cortexd.wire.engine_errors import is_context_overflow, is_unknown_model

# Seconds after a request was sent within which a lost connection is taken for bad luck; later it
# may be the prompt that kills engines, and that must not be carried to every one of them.
RESEND_WITHIN: Final = 1.0
# How often one request may be decided again because a node does not have a model it lists.
MAX_RECHECKS: Final = 2


class Attempts:
    """Retry state of one request: the nodes tried, and the query for the next attempt.

    query: what to ask of routing; changes with what was tried.
    retries: how many attempts may follow the first.
    patience_for: seconds that a request which met a cold model may wait in all.
    since: loop time at which the request arrived, set once a node has refused it though it had
        waited for its model: it returns to its place in the queue.
    is_fresh: the next attempt needs a new connection.
    """

    since: float | None = None
    is_fresh = _goes_back = _has_resent = False
    _rechecks = 0
    _was_too_long = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        query: Query,
        retries: int,
        patience_for: float = 0.0,
    ) -> None:
        self._dispatcher = dispatcher
        self.query = query
        self._left = retries
        self._began = dispatcher.now()
        self._patience_for = patience_for

    def declines(self, route: RouteDecision, status: int) -> bool:
        """Whether an answer with that status is given up, for a replica that is no busier or, after
        a load, for a place in the line."""
        if status not in BACK_PRESSURE:
            return False
        self._goes_back = self._has_a_place(route)
        if self._goes_back:
            return True
        if not self._left or route.node == self.query.home:
            return False
        return self._dispatcher.has_better(self._query_without(route), route)

    def judge(self, route: RouteDecision, status: int, content: bytes) -> What | None:
        """Return the fault that an error answer stands for; None: pass it on to the client."""
        if status == HTTPStatus.UNAUTHORIZED:
            return "unauthorized"
        if is_unknown_model(status, content, route.replica.model):
            return "model_missing"
        if (
            not self._was_too_long
            and is_context_overflow(status, content)
            and self._larger(route) is not None
        ):
            return "context_overflow"
        return None

    async def has_next(self, fault: UpstreamFault, route: RouteDecision) -> bool:
        """Whether another attempt may follow this fault; the attributes then say how."""
        # As it was declined, whatever the clock says by now.
        if fault.what == "declined" and self._goes_back:
            self.since = self._began
            return True
        if fault.what == "model_missing":
            return await self._goes_on_without(route)
        if fault.what == "context_overflow":
            larger, self._was_too_long = self._larger(route), True
            self.query = larger or self._query_without(route)
            return larger is not None
        if not self._left:
            return False
        self._left -= 1
        match fault.what:
            case "refused" | "unreachable" | "own":  # it never saw the request; it may have moved
                if await self._dispatcher.endpoint_moved(route) is not None:
                    return True
                self.query = self._query_without(route)
                return self._dispatcher.other(self.query) is not None
            case "unauthorized":
                self.query = self._query_without(route)
                return self._dispatcher.other(self.query) is not None
            case "unsent":
                self.is_fresh = True
                return True
            case "declined":
                self.query = self._query_without(route)
                return True
            case "dead" if not self._has_resent:
                self._has_resent = True
                self.query = self._query_without(route)
                return self._dispatcher.can_route(self.query)
            case "reset" if self._may_resend(fault):
                self._has_resent = True
                if fault.is_reused or self._dispatcher.other(self._query_without(route)) is None:
                    self.is_fresh = True
                else:
                    self.query = self._query_without(route)
                return True
            case "invalid" if fault.is_taken_back and self._may_resend(fault):
                self._has_resent = True
                self.query = self._query_without(route)
                return self._dispatcher.other(self.query) is not None
            case _:
                return False

    async def _goes_on_without(self, route: RouteDecision) -> bool:
        """Return whether to decide again after a node answered that it does not have the model.

        Not counted as a retry, since the snapshot was out of date. A node that still lists the
        model after another poll is not asked again.
        """
        self._rechecks += 1
        if self._rechecks > MAX_RECHECKS:
            return False
        if not await self._dispatcher.still_listed(route):
            return True
        self.query = self._query_without(route)
        return self._dispatcher.other(self.query) is not None

    def _may_resend(self, fault: UpstreamFault) -> bool:
        return not self._has_resent and fault.after <= RESEND_WITHIN

    def _larger(self, route: RouteDecision) -> Query | None:
        """Return the query for a replica with a larger context; None: there is none.

        One that does not state its context may be larger than one that does.
        """
        own = route.replica.context
        if self.query.home == route.node:
            return None  # only that node has what comes before
        query = msgspec.structs.replace(
            self._query_without(route), could_fit=lambda context: context > (own or 0)
        )
        other = self._dispatcher.other(query)
        if other is None or other.context == own or (other.context or math.inf) < (own or 0):
            return None
        return query

    def _has_a_place(self, route: RouteDecision) -> bool:
        """Whether it waited for this model, and may wait for longer: others would come first."""
        return route.is_cold_start and self._dispatcher.now() < self._began + self._patience_for

    def _query_without(self, route: RouteDecision) -> Query:
        return msgspec.structs.replace(self.query, tried={*self.query.tried, route.node})
