"""The neuron's wire: reads requests, asks `residency` and `devices`, spells their answers.

Decides nothing about models: what may be loaded, and when, is residency's to know.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.neuron.devices import Devices
from cortexd.neuron.refusals import UNAUTHORIZED
from cortexd.neuron.residency import Residency
from cortexd.proxy.exchange import Call, Exchange, UpstreamFault
from cortexd.wire import neuron as wire
from cortexd.wire import openai

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 20  # bytes, like the gateway's own default

# Engines read dots and escapes in a path in their own way: none pass.
_INFERENCE: Final = (
    "/v1/{path:[A-Za-z0-9_/-]+}",
    "/rerank",
    "/tokenize",
    "/detokenize",
    "/apply-template",
)
_BY_STATUS: Final = {
    404: errors.UNKNOWN_ROUTE,
    405: errors.METHOD_NOT_ALLOWED,
    413: errors.REQUEST_TOO_LARGE,
}


class _View(msgspec.Struct):
    """What is read of an inference request; the rest is the engine's."""

    model: str


_decode_view = msgspec.json.Decoder(_View)
_decode_load = msgspec.json.Decoder(wire.LoadRequest)
_decode_unload = msgspec.json.Decoder(wire.UnloadRequest)


class Api:
    """The management calls and the relayed inference. `token`: what every caller must send."""

    def __init__(
        self, residency: Residency, devices: Devices, exchange: Exchange, token: str | None = None
    ) -> None:
        self._residency = residency
        self._devices = devices
        self._exchange = exchange
        self._token = token
        self._started = time.monotonic()
        self.endpoint = ""  # this neuron's own URL, once it is bound

    def application(self) -> web.Application:
        """All routes, behind the token and the error envelopes."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.router.add_get("/discovery", self._discovery)
        app.router.add_get("/health", self._health)
        app.router.add_get("/models", self._models)
        app.router.add_get("/models/{id:.+}/endpoint", self._model_endpoint)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)
        for path in _INFERENCE:
            app.router.add_post(path, self._relay)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._authorize(request)
            return await handler(request)
        except Refusal as refused:
            refusal = refused
        except web.HTTPException as error:
            kind = _BY_STATUS.get(error.status, errors.BAD_REQUEST)
            refusal = Refusal(kind, f"{request.method} {request.path[:200]}: {error.reason}.")
        except Exception:
            log.exception("%s %r failed", request.method, request.path)
            refusal = Refusal(errors.INTERNAL_ERROR, "The neuron failed; its log has the details.")
        return _refused(request, refusal)

    def _authorize(self, request: web.Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(
            given.strip().encode(errors="surrogateescape"), self._token.encode()
        )
        if scheme.lower() != "bearer" or not is_right:
            raise Refusal(UNAUTHORIZED, "This neuron wants a token; send it as a bearer token.")

    async def _discovery(self, request: web.Request) -> web.Response:
        return _json(self._devices.discovery)

    async def _health(self, request: web.Request) -> web.Response:
        return _json(
            wire.Health(
                uptime_secs=int(time.monotonic() - self._started),
                devices=self._devices.gauges(self._residency.used_mb),
                activation=wire.Activation("ready", pending=[], completed=[], failed=[]),
                models=self._residency.loads(),
            )
        )

    async def _models(self, request: web.Request) -> web.Response:
        return _json(self._residency.models())

    async def _model_endpoint(self, request: web.Request) -> web.Response:
        # An id may hold slashes, encoded or not: what stands between the fixed parts is the id.
        path = request.rel_url.raw_path.removeprefix("/models/").removesuffix("/endpoint")
        model = unquote(path)
        if not self._residency.knows(model):
            raise Refusal(errors.MODEL_NOT_FOUND, f"The model {model!r} is not served here.")
        return _json(wire.Endpoint(self.endpoint))

    async def _load(self, request: web.Request) -> web.Response:
        await self._residency.load(_decoded(_decode_load, await _body(request)))
        return _json(wire.StatusAnswer(wire.LOADED))

    async def _unload(self, request: web.Request) -> web.Response:
        wanted = _decoded(_decode_unload, await _body(request))
        await self._residency.unload(wanted.model_id, if_idle=bool(wanted.if_idle))
        return _json(wire.StatusAnswer(wire.UNLOADED))

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        # Read whole before any wait: aiohttp misses a client that leaves while it still sends.
        body = await _body(request)
        model = _decoded(_decode_view, body).model
        async with self._residency.serving(model) as engine:
            call = Call(engine.url + request.rel_url.raw_path_qs, body, engine.headers)
            try:
                return (await self._exchange.carry(request, call)).response
            except UpstreamFault as fault:
                raise Refusal(
                    errors.UPSTREAM_FAILED, f"The engine of {model!r} gave no answer: {fault}."
                ) from fault


async def _body(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal(errors.UNSUPPORTED_ENCODING, "Send the body without a Content-Encoding.")
    return await request.read()


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        kind = errors.MISSING_MODEL if decoder is _decode_view else errors.INVALID_VALUE
        raise Refusal(kind, f"The request is not what this call takes: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(errors.INVALID_JSON, f"The body is not valid JSON: {error}.") from error


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


def _refused(request: web.Request, refusal: Refusal) -> web.Response:
    """The error, as callers of that path read errors."""
    kind = refusal.kind
    content: msgspec.Struct = wire.Fault(refusal.message, kind.code)
    if not request.path.startswith(("/models", "/discovery", "/health")):
        who = "invalid_request_error" if kind.status < 500 else "api_error"
        content = openai.ErrorEnvelope(openai.Error(refusal.message, who, refusal.param, kind.code))
    response = _json(content, kind.status)
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if kind is UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
