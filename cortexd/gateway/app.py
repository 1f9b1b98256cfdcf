"""The composition root: builds the whole gateway from its configuration, once."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from cortexd import __version__, errors
from cortexd.config.address import parse_listen
from cortexd.config.gateway import Config
from cortexd.control.coldload import LoadTable
from cortexd.control.dispatch import Dispatcher
from cortexd.control.endpoints import Endpoints
from cortexd.control.events import Events
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.daemon.access import AccessLog
from cortexd.daemon.resolver import Resolver
from cortexd.errors import Kind, Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.snapshot import Node
from cortexd.gateway.accounting import Accounting
from cortexd.gateway.health import condition
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.intake import new_request_id, request_id
from cortexd.gateway.openai import ModelBook
from cortexd.gateway.refusals import answer, dialect_of, own_headers
from cortexd.gateway.relay import Relay
from cortexd.metrics import FleetCollector, Metrics
from cortexd.nodes.client import NeuronClient
from cortexd.proxy.door import DoorServer
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.listen import Listener, connection_cap, listen

log = logging.getLogger(__name__)

Handler = Callable[[Inbound], Awaitable[web.StreamResponse]]

INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/rerank",
    "/v1/score",
    "/v1/moderations",
    "/v1/audio/speech",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/tokenize",
    "/detokenize",
)
PATIENCE = 5.0  # seconds by which a wait may be past its bound before something must be wrong
METRICS_CONNECTIONS = 32  # on a listener of their own; within what `listen` reserves
MODEL_PREFIX = "/v1/models/"


class Gateway:
    """One gateway. `start` opens its listeners, `close` ends it; `address` is where it listens.

    tokens: node → the bearer token of its neuron. tls: for https; None: the system's certificates.
    access: takes the access log.
    """

    def __init__(
        self,
        config: Config,
        *,
        tokens: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self._config = config
        self._tls = tls
        self._access = access
        self._tokens = dict(tokens or {})
        self._routes: dict[str, dict[str, Handler]] = {}
        self._ready = False
        self._listeners: list[Listener] = []
        self.address: tuple[str, int] = ("", 0)

    async def start(self) -> None:
        """Build everything, open the listeners, start polling.

        Raises OSError on a taken port, TooFewDescriptors.
        """
        config = self._config
        max_connections = connection_cap()
        self._resolver = Resolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, resolver=self._resolver, use_dns_cache=False, ssl=self._tls or True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.metrics = Metrics()
        self._events = Events()
        self.registry = Registry(
            [Node(neuron.name, neuron.endpoint) for neuron in config.neurons],
            Catalogue.of(config.models, config.aliases),
            self._events,
            unhealthy_after=config.polling.unhealthy_after,
        )
        clients = {
            neuron.name: NeuronClient(
                self._session, neuron.endpoint, token=self._tokens.get(neuron.name)
            )
            for neuron in config.neurons
        }
        self._poller = Poller(self.registry, clients, config.polling, self.metrics)
        self.table = LoadTable(
            self.registry,
            clients,
            self._poller,
            self.metrics,
            self._events,
            timeout=config.loading.timeout,
            max_waiting=config.loading.max_waiting,
        )
        self._endpoints = Endpoints(
            self.registry,
            clients,
            allowed_hosts=config.security.allowed_inference_hosts,
            timeout=config.polling.timeout,
        )
        self._exchange = Exchange(self._resolver, self._tls)
        dispatcher = Dispatcher(self.registry, self.table, self._endpoints)
        accounting = Accounting(
            self.metrics,
            self.registry,
            self._access.write if self._access and config.gateway.access_log else None,
        )
        self._relay = Relay(
            dispatcher, self._exchange, self.registry, accounting, config, self._tokens
        )
        self._models = ModelBook(created=int(time.time()))
        self.metrics.registry.register(
            FleetCollector(
                lambda: self.registry.snapshot,
                self.registry.ledger,
                self.table.waiting,
                self.table.longest_wait,
                time.monotonic,
            )
        )
        self._add_routes()
        try:
            self.address = await self._listen(config.gateway.listen, self._handle, max_connections)
            if config.gateway.metrics_listen is not None:
                await self._listen(
                    config.gateway.metrics_listen, self._handle_metrics, METRICS_CONNECTIONS
                )
        except OSError:
            await self.close()
            raise
        self._poller.start()
        self.table.start()
        self._ready = True

    async def close(self) -> None:
        """Stop accepting, tell the waiters, let running answers end, close everything."""
        self._ready = False
        for listener in self._listeners:
            listener.server.leave()
        await self._poller.close()
        await self.table.close()
        self._events.close()
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        await self._endpoints.close()
        await self._exchange.close()
        await self._session.close()
        if self._access is not None:
            self._access.flush()
        await self._resolver.close()

    async def _listen(
        self,
        where: str,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        max_connections: int,
    ) -> tuple[str, int]:
        settings = self._config.gateway
        server = DoorServer(
            handler, self._refuse, max_body=settings.max_body, max_connections=max_connections
        )
        timeout = settings.shutdown_timeout
        listener = await listen(server, *parse_listen(where), shutdown_timeout=timeout)
        self._listeners.append(listener)
        return listener.address

    def _refuse(self, request: web.BaseRequest | None, kind: Kind, words: str) -> web.Response:
        """The answer to what never becomes a request of ours."""
        self.metrics.child(self.metrics.refusals, kind.code).inc()
        refusal = Refusal(kind, words)
        if request is None:
            return answer(refusal, "openai", new_request_id())
        return answer(refusal, dialect_of(request.path), request_id(request))

    def _add_routes(self) -> None:
        for path in INFERENCE_PATHS:
            self._routes[path] = {"POST": self._relay.serve}
        reads: dict[str, Handler] = {
            "/": self._front,
            "/health": self._health,
            "/ready": self._readiness,
            "/version": self._version,
            "/v1/models": self._list_models,
        }
        if self._config.gateway.metrics_listen is None:
            reads["/metrics"] = self._metrics
        for path, handler in reads.items():
            self._routes[path] = {"GET": handler, "HEAD": handler}

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.path
        inbound = Inbound(request, path, request_id(request), dialect_of(path), time.monotonic())
        try:
            return await self._route(inbound)(inbound)
        except Refusal as refused:
            refusal = refused
        except Exception:
            if request.writer.output_size:
                raise  # an error must not land among the bytes of an answer: the door cuts it
            log.exception("request %s failed", inbound.request_id)
            refusal = Refusal(
                errors.INTERNAL_ERROR,
                f"The gateway failed; its log has the details under {inbound.request_id}.",
            )
        self.metrics.child(self.metrics.refusals, refusal.kind.code).inc()
        return answer(refusal, inbound.dialect, inbound.request_id)

    async def _handle_metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        inbound = Inbound(request, request.path, request_id(request), "openai", time.monotonic())
        if request.path == "/metrics" and request.method in {"GET", "HEAD"}:
            return await self._metrics(inbound)
        return answer(_unknown_route(inbound), "openai", inbound.request_id)

    def _route(self, inbound: Inbound) -> Handler:
        """Default-deny: only what the table lists is a route."""
        methods = self._routes.get(inbound.path)
        if methods is None and inbound.path.startswith(MODEL_PREFIX):
            methods = {"GET": self._one_model, "HEAD": self._one_model}
        if methods is None:
            raise _unknown_route(inbound)
        handler = methods.get(inbound.request.method)
        if handler is None:
            allowed = ", ".join(methods)
            raise Refusal(
                errors.METHOD_NOT_ALLOWED, f"{inbound.path} takes {allowed}; use one of these."
            )
        return handler

    async def _front(self, inbound: Inbound) -> web.Response:
        return _json(inbound, {"name": "cortexd", "version": __version__, "models": "/v1/models"})

    async def _health(self, inbound: Inbound) -> web.Response:
        return _json(
            inbound,
            condition(
                self.registry.snapshot,
                self.table.longest_wait(),
                self._config.loading.timeout + PATIENCE,
            ),
        )

    async def _readiness(self, inbound: Inbound) -> web.Response:
        ready = self._ready and self.registry.snapshot.healthy > 0
        return _json(inbound, {"ready": ready}, status=200 if ready else 503)

    async def _version(self, inbound: Inbound) -> web.Response:
        return _json(inbound, {"version": __version__})

    async def _list_models(self, inbound: Inbound) -> web.Response:
        return _json(inbound, self._models.list(self.registry.snapshot, self.registry.ledger))

    async def _one_model(self, inbound: Inbound) -> web.Response:
        name = inbound.path.removeprefix(MODEL_PREFIX)
        return _json(inbound, self._models.card(name, self.registry.snapshot, self.registry.ledger))

    async def _metrics(self, inbound: Inbound) -> web.Response:
        parts = []
        for part in self.metrics.exposition():
            parts.append(part)
            await asyncio.sleep(0)  # between two families others may have their turn
        return web.Response(
            body=b"".join(parts),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            | own_headers(inbound.dialect, inbound.request_id),
        )


def read_tokens(config: Config, base: Path) -> dict[str, str]:
    """Node → token, from the token files; relative paths start at `base`. Raises OSError."""
    return {
        neuron.name: (base / neuron.token_file).read_text().strip()
        for neuron in config.neurons
        if neuron.token_file is not None
    }


def read_certificates(config: Config, base: Path) -> ssl.SSLContext | None:
    """Whom to trust behind https, when it is not the system's choice. Raises OSError."""
    file = config.upstream.ca_file
    return None if file is None else ssl.create_default_context(cafile=base / file)


def _json(inbound: Inbound, content: object, status: int = 200) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(content),
        content_type="application/json",
        headers=own_headers(inbound.dialect, inbound.request_id),
    )


def _unknown_route(inbound: Inbound) -> Refusal:
    return Refusal(
        errors.UNKNOWN_ROUTE,
        f"There is no {inbound.request.method} {inbound.path[:200]} here; inference is at "
        "/v1/chat/completions, models are listed at /v1/models.",
    )
