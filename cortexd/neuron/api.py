"""The neuron's wire: reads requests, asks `residency` and `devices`, spells their answers.

Decides nothing about models: what may be loaded, and when, is residency's to know.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.config.address import listen_host
from cortexd.config.neuron import Agent
from cortexd.errors import Kind, Refusal
from cortexd.neuron.devices import Devices
from cortexd.neuron.filelist import FileList
from cortexd.neuron.refusals import UNAUTHORIZED
from cortexd.neuron.rejections import RejectionLog
from cortexd.neuron.residency import Residency
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.bodies import Bodies
from cortexd.proxy.browser import foreign_origin, host_name, is_from_browser, is_local_host
from cortexd.proxy.call import Call
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.headers import lines
from cortexd.proxy.splice import Splice
from cortexd.wire import multipart, openai
from cortexd.wire import neuron as wire
from cortexd.wire.openai import without_bom

T = TypeVar("T")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

MAX_MANAGEMENT_BODY: Final = 64 << 10  # bytes of one management call
_MAX_MANAGEMENT: Final = 1 << 20  # bytes of all of them at one time

# Engines read dots and escapes in a path differently: none pass. Our engines store no response.
_INFERENCE: Final = re.compile(
    r"/v1/(?!responses/(?!input_tokens$))[A-Za-z0-9_/-]+"
    r"|/rerank|/tokenize|/detokenize|/apply-template"
)
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
        settings: Agent,
        token: str | None = None,
    ) -> None:
        self._residency = residency
        self._files = files
        self._devices = devices
        self._exchange = exchange
        self._token = token
        self._rejections = RejectionLog()
        self._own_names = (listen_host(settings.listen),)
        self._bodies = Bodies(
            settings.max_body, settings.max_buffered, table="[neuron]", decodes=False
        )
        self._management = Bodies(MAX_MANAGEMENT_BODY, _MAX_MANAGEMENT, table="", decodes=False)
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
            if is_from_browser(request):
                self._screen(request)
            self._authorize(request)
            return await self._route(request)(request)
        except Refusal as refused:
            refusal = refused
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
            allow = ("GET", "HEAD") if method == "GET" else (method,)
            raise _said(request, errors.METHOD_NOT_ALLOWED, "Method Not Allowed", allow)
        return handler

    def _screen(self, request: web.BaseRequest) -> None:
        """Raise Refusal for a page of another origin, or a name that may have been rebound."""
        if not is_local_host(host_name(request.headers.get("Host", "")), self._own_names):
            raise Refusal(
                errors.FORBIDDEN_HOST,
                "The Host of this request may be a stranger's name for this neuron; use its IP "
                "address.",
            )
        if foreign_origin(request, ()) is not None:
            raise Refusal(
                errors.FORBIDDEN_ORIGIN,
                "Pages of other origins may not use a neuron; have them use the gateway.",
            )

    def _authorize(self, request: web.BaseRequest) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        is_right = hmac.compare_digest(
            given.strip().encode(errors="surrogateescape"), self._token.encode()
        )
        if scheme.lower() == "bearer" and is_right:
            return
        has_token = bool(given.strip())
        call = f"{request.method} {wire.plain(request.path)[:100]}"
        self._rejections.note(request.remote or "?", call, has_token=has_token)
        if has_token:
            raise Refusal(UNAUTHORIZED, "This neuron has another token than the one that was sent.")
        raise Refusal(UNAUTHORIZED, "This neuron requires a token; send it as a bearer token.")

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
        await self._residency.load(await self._managed(request, _decode_load))
        return _json(wire.StatusAnswer(wire.LOADED))

    async def _unload(self, request: web.BaseRequest) -> web.Response:
        wanted = await self._managed(request, _decode_unload)
        await self._residency.unload(wanted.model_id, if_idle=bool(wanted.if_idle))
        return _json(wire.StatusAnswer(wire.UNLOADED))

    async def _managed(self, request: web.BaseRequest, decoder: msgspec.json.Decoder[T]) -> T:
        """Read a management call. Raises Refusal.

        A page of another origin can send JSON only after a preflight, which nothing here allows.
        """
        if request.content_type != "application/json":
            raise Refusal(
                errors.UNSUPPORTED_MEDIA_TYPE, "This needs `Content-Type: application/json`."
            )
        hold = self._management.hold()
        try:
            return _decoded(decoder, await hold.read(request))
        finally:
            hold.release()

    async def _relay(self, request: web.BaseRequest) -> web.StreamResponse:
        hold = self._bodies.hold()
        try:
            # Read whole before any wait: aiohttp misses a client that leaves while it still sends.
            body = await hold.read(request)
            return await self._serve(request, body)
        finally:
            hold.release()

    async def _serve(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        content_type = request.headers.get("Content-Type", "")
        if is_form := multipart.is_form(content_type):
            model = _model_of_form(body, content_type)
        else:
            body = without_bom(body)
            model = _decoded(_decode_view, body).model
        async with self._residency.serving(model) as engine:
            call = Call(
                engine.url,
                request.rel_url.raw_path_qs,
                body,
                lines(engine.headers),
                is_mistyped=not is_form and content_type != "application/json",
            )
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


def _model_of_form(body: bytes, content_type: str) -> str:
    """Return the `model` field of a multipart form. Raises Refusal."""
    try:
        found = multipart.fields(content_type, body, ("model",))
        model = body[found.get("model", slice(0))].decode()
    except (multipart.FormError, UnicodeDecodeError) as error:
        why = "its `model` is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Refusal(
            errors.BAD_REQUEST,
            f"The body is not the form that its Content-Type announces: {why}.",
        ) from error
    if not model:
        raise Refusal(errors.MISSING_MODEL, "The form needs a `model` field.", param="model")
    return model


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(without_bom(body))
    except msgspec.ValidationError as error:
        kind = errors.MISSING_MODEL if decoder is _decode_view else errors.INVALID_VALUE
        raise Refusal(kind, f"The request is not what this call takes: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(errors.INVALID_JSON, f"The body is not valid JSON: {error}.") from error


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


def _said(request: web.BaseRequest, kind: Kind, reason: str, allow: Sequence[str] = ()) -> Refusal:
    return Refusal(kind, f"{request.method} {request.path[:200]}: {reason}.", allow=allow)


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
    if refusal.allow:
        response.headers["Allow"] = ", ".join(refusal.allow)
    if kind is errors.UNSUPPORTED_ENCODING:
        response.headers["Accept-Encoding"] = "identity"
    if kind is errors.REQUEST_TOO_LARGE:
        response.force_close()  # what is left of the body is not worth reading
    if kind is UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
