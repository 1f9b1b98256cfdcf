"""A request on its way through the gateway, and what is known of it so far."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cortexd.control.dispatch import RouteDecision
from cortexd.gateway.refusals import Dialect
from cortexd.proxy.call import Carried


class Inbound(msgspec.Struct, eq=False):
    """One request. `status` is 0 until it is answered.

    received: monotonic; of the first request of a connection, when its bytes reached the kernel.
    hops: gateways that it has passed through before this one.
    target: the path as it goes upstream, where `path` stands for many; None: it is `path`.
    home: the node of the response that this request continues or, if is_for_response, asks for.
    asked, model: the model as the caller spelt it, and its concrete id.
    is_mistyped: the body is JSON, and its Content-Type says something else.
    sent: when it first went upstream, monotonic; waited: seconds before that, for a load.
    ended: monotonic.
    is_open: a part of an answer was sent. hides_usage: its stream's usage is asked for by the
        gateway only.
    code: of the refusal, if it was refused.
    """

    request: web.BaseRequest
    path: str
    request_id: str
    dialect: Dialect
    received: float
    hops: int = 0
    target: str | None = None
    home: str | None = None
    is_for_response: bool = False
    asked: str | None = None
    model: str | None = None
    is_mistyped: bool = False
    is_stream: bool = False
    is_open: bool = False
    hides_usage: bool = False
    route: RouteDecision | None = None
    carried: Carried | None = None
    status: int = 0
    sent: float | None = None
    waited: float = 0.0
    ended: float = 0.0
    code: str | None = None
