"""The neuron's wire: reads requests, asks `residency` and `devices`, spells their answers.

Decides nothing about models: what may be loaded, and when, is residency's to know.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.errors import Kind, Refusal
from cortexd.neuron.devices import Devices
from cortexd.neuron.filelist import FileList
from cortexd.neuron.refusals import UNAUTHORIZED
from cortexd.neuron.residency import Residency
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.browser import host_name
from cortexd.proxy.exchange import Call, Exchange
from cortexd.proxy.headers import lines
from cortexd.proxy.splice import Splice
from cortexd.wire import neuron as wire
from cortexd.wire import openai

T = TypeVar("T")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 20  # bytes, like the gateway's own default

# Engines read dots and escapes in a path in their own way: none pass.
_INFERENCE: Final = re.compile(r"/v1/[A-Za-z0-9_/-]+|/rerank|/tokenize|/detokenize|/apply-template")
# An id may hold slashes, encoded or not: what stands between the fixed parts is the id.
_ENDPOINT: Final = re.compile(r"/models/.+/endpoint")


class _View(msgspec.Struct):
    """What is read of an inference request; the rest is the engine's."""

    model: str


_decode_view = msgspec.json.Decoder(_View)
_decode_load = msgspec.json.Decoder(wire.LoadRequest)
_decode_unload = msgspec.json.Decoder(wire.UnloadRequest)


class Api:
    """The management calls and the relayed inference. `token`: what every caller must send."""

    def __init__(
        self,
        residency: Residency,
        devices: Devices,
        exchange: Exchange,
        files: FileList,
        token: str | None = None,
    ) -> None:
        self._residency = residency
        self._files = files
        self._devices = devices
        self._exchange = exchange
        self._token = token
        self._started = time.monotonic()
        self._routes: dict[str, tuple[str, Handler]] = {
            "/discovery": ("GET", self._discovery),
            "/health": ("GET", self._health),
            "/models": ("GET", self._models),
            "/models/load": ("POST", self._load),
            "/models/unload": ("POST", self._unload),
        }
        self.endpoint = ""  # this neuron's own URL, once it is bound, for callers without a Host

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            self._authorize(request)
            return await self._route(request)(request)
        except Refusal as refused:
            refusal = refused
        except web.HTTPRequestEntityTooLarge:
            refusal = _said(request, errors.REQUEST_TOO_LARGE, "Request Entity Too Large")
        except Exception:
            log.exception("%s %r failed", request.method, request.path)
            refusal = Refusal(errors.INTERNAL_ERROR, "The neuron failed; its log has the details.")
        return _refused(request.path, refusal)

    def refuse(self, request: web.BaseRequest | None, kind: Kind, words: str) -> web.Response:
        """The answer to what is no request to us: bad HTTP, or a connection too many."""
        return _refused("" if request is None else request.path, Refusal(kind, words))

    def _route(self, request: web.BaseRequest) -> Handler:
        """Default-deny: only what the table lists is a route. Looks at the path as it was sent."""
        path = request.rel_url.raw_path
        route = self._routes.get(path)
        if route is None and _INFERENCE.fullmatch(path):
            route = ("POST", self._relay)
        if route is None and _ENDPOINT.fullmatch(path):
            route = ("GET", self._model_endpoint)
        if route is None:
            raise _said(request, errors.UNKNOWN_ROUTE, "Not Found")
        method, handler = route
        if request.method != method and (method, request.method) != ("GET", "HEAD"):
            raise _said(request, errors.METHOD_NOT_ALLOWED, "Method Not Allowed")
        return handler

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(
            given.strip().encode(errors="surrogateescape"), self._token.encode()
        )
        if scheme.lower() != "bearer" or not is_right:
            raise Refusal(UNAUTHORIZED, "This neuron wants a token; send it as a bearer token.")

    async def _discovery(self, request: web.BaseRequest) -> web.Response:
        await self._files.refresh()
        files = self._files
        return _json(
            msgspec.structs.replace(
                self._devices.discovery, loadable=files.entries, loadable_version=files.version
            )
        )

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return _json(
            wire.Health(
                uptime_secs=int(time.monotonic() - self._started),
                devices=self._devices.gauges(self._residency.used_mb),
                activation=wire.Activation("ready", pending=[], completed=[], failed=[]),
                models=self._residency.loads(),
                loadable_version=self._files.version,
            )
        )

    async def _models(self, request: web.BaseRequest) -> web.Response:
        return _json(self._residency.models())

    async def _model_endpoint(self, request: web.BaseRequest) -> web.Response:
        path = request.rel_url.raw_path
        model = unquote(path.removeprefix("/models/").removesuffix("/endpoint"))
        if not self._residency.knows(model):
            raise Refusal(errors.MODEL_NOT_FOUND, f"The model {model!r} is not served here.")
        # Behind a port mapping or a proxy, only the caller knows the port that leads here.
        host = request.headers.get("Host", "")
        return _json(wire.Endpoint(f"http://{host}" if host_name(host) else self.endpoint))

    async def _load(self, request: web.BaseRequest) -> web.Response:
        await self._residency.load(_decoded(_decode_load, await _body(request)))
        return _json(wire.StatusAnswer(wire.LOADED))

    async def _unload(self, request: web.BaseRequest) -> web.Response:
        wanted = _decoded(_decode_unload, await _body(request))
        await self._residency.unload(wanted.model_id, if_idle=bool(wanted.if_idle))
        return _json(wire.StatusAnswer(wire.UNLOADED))

    async def _relay(self, request: web.BaseRequest) -> web.StreamResponse:
        # Read whole before any wait: aiohttp misses a client that leaves while it still sends.
        body = await _body(request)
        model = _decoded(_decode_view, body).model
        async with self._residency.serving(model) as engine:
            call = Call(engine.url, request.rel_url.raw_path_qs, body, lines(engine.headers))
            splice = Splice(request)
            try:
                await self._carry(splice, request, call)
            except UpstreamFault as fault:
                raise Refusal(
                    errors.UPSTREAM_FAILED, f"The engine of {model!r} gave no answer: {fault}."
                ) from fault
            finally:
                splice.release()
            return splice.response()

    async def _carry(self, splice: Splice, request: web.BaseRequest, call: Call) -> None:
        try:
            await self._exchange.carry(splice, request, call)
        except UpstreamFault as fault:
            if not fault.is_reused or fault.what not in ("unsent", "reset"):
                raise
            # An engine closes what is idle when it likes; a new connection tells whether it lives.
            await self._exchange.carry(
                splice, request, msgspec.structs.replace(call, is_fresh=True)
            )


async def _body(request: web.BaseRequest) -> bytes:
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


def _said(request: web.BaseRequest, kind: Kind, reason: str) -> Refusal:
    return Refusal(kind, f"{request.method} {request.path[:200]}: {reason}.")


def _refused(path: str, refusal: Refusal) -> web.Response:
    """The error, as callers of that path read errors."""
    kind = refusal.kind
    content: msgspec.Struct = wire.Fault(refusal.message, kind.code)
    if not path.startswith(("/models", "/discovery", "/health")):
        who = "invalid_request_error" if kind.status < 500 else "api_error"
        content = openai.ErrorEnvelope(openai.Error(refusal.message, who, refusal.param, kind.code))
    response = _json(content, kind.status)
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if kind is UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
