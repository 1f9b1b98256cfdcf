"""The composition root: builds the whole gateway from its configuration, once."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import aiohttp
import msgspec
from aiohttp import web

from cortexd import __version__, errors
from cortexd.config.gateway import Config
from cortexd.control.coldload import LoadTable
from cortexd.control.dispatch import Dispatcher
from cortexd.control.endpoints import Endpoints
from cortexd.control.events import Events
from cortexd.control.liveness import Liveness
from cortexd.control.loader import Loader
from cortexd.control.operator import Operator
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.residents import Residents
from cortexd.control.room import Room
from cortexd.control.unloads import Unloads
from cortexd.daemon.access import AccessLog
from cortexd.daemon.resolver import Resolver
from cortexd.daemon.state import StateFile, noted, remembered
from cortexd.errors import Kind, Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.explain import explain
from cortexd.fleet.snapshot import Node, Policy
from cortexd.gateway.accounting import Accounting
from cortexd.gateway.admin import Admin
from cortexd.gateway.events import stream_events
from cortexd.gateway.face import Face, Methods, as_json, read
from cortexd.gateway.fleet import view
from cortexd.gateway.health import condition
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.intake import new_request_id, request_id
from cortexd.gateway.listeners import open_listener, spelt
from cortexd.gateway.openai import ModelBook
from cortexd.gateway.refusals import answer, dialect_of, own_headers
from cortexd.gateway.relay import Relay
from cortexd.metrics import FleetCollector, Metrics
from cortexd.nodes.client import NeuronClient
from cortexd.proxy.door import DoorServer
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.listen import Listener, connection_cap

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
FEW_CONNECTIONS = 32  # on each listener but the main one; within what that leaves
MODEL_PREFIX = "/v1/models/"


class Gateway:
    """One gateway. `start` opens its listeners, `close` ends it; `address` is where it listens.

    admin_address: where operators reach it, as host:port or unix:/path; "": nowhere.

    tokens: node → the bearer token of its neuron. tls: for https; None: the system's certificates.
    access: takes the access log. state_dir: keeps what outlives a restart; None: nothing does.
    """

    def __init__(
        self,
        config: Config,
        *,
        tokens: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        access: AccessLog | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self._config = config
        self._tls = tls
        self._access = access
        self._state_dir = state_dir
        self._tokens = dict(tokens or {})
        self._ready = False
        self._listeners: list[Listener] = []
        self.address: tuple[str, int] = ("", 0)
        self.admin_address = ""

    async def start(self) -> None:
        """Build everything, open the listeners, start polling.

        Raises CantListen (on a taken port, for instance), TooFewDescriptors.
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
            [
                Node(
                    neuron.name,
                    neuron.endpoint,
                    weight=neuron.weight,
                    reserve_mb=neuron.reserve_mb,
                )
                for neuron in config.neurons
            ],
            Catalogue.of(config.models, config.aliases),
            self._events,
            unhealthy_after=config.polling.unhealthy_after,
            policy=_policy(config),
        )
        self._state = StateFile(self._state_dir)
        for name in (await self._state.open()).drained:
            if name in self.registry.snapshot.nodes:
                self.registry.drain(name)
        clients = {
            neuron.name: NeuronClient(
                self._session, neuron.endpoint, token=self._tokens.get(neuron.name)
            )
            for neuron in config.neurons
        }
        self._poller = Poller(self.registry, clients, config.polling, self.metrics)
        profiles = self.registry.snapshot.catalogue.profiles
        self.registry.ledger.footprints.update(remembered(self._state.state, profiles))
        reservations = Reservations(self.registry, self._keep_footprints)
        self._unloads = Unloads(
            self.registry, clients, self._poller, reservations, self.metrics, self._events
        )
        room = Room(self.registry, self._unloads, reservations)
        self.table = LoadTable(
            self.registry,
            Loader(self.registry, clients, self._events, room, reservations),
            self._poller,
            self.metrics,
            self._events,
            timeout=config.loading.timeout,
            max_waiting=config.loading.max_waiting,
        )
        self._operator = Operator(
            self.registry,
            self.table,
            self._unloads,
            self._state,
            timeout=config.loading.timeout,
        )
        self._residents = Residents(self.registry, self.table, self._unloads)
        self._endpoints = Endpoints(
            self.registry,
            clients,
            allowed_hosts=config.security.allowed_inference_hosts,
            timeout=config.polling.timeout,
        )
        self._exchange = Exchange(self._resolver, self._tls)
        dispatcher = Dispatcher(self.registry, self.table, self._endpoints, reservations)
        self._accounting = Accounting(
            self.metrics,
            self.registry,
            self._access.write if self._access and config.gateway.access_log else None,
        )
        self._relay = Relay(
            dispatcher,
            self._exchange,
            self.registry,
            self._accounting,
            Liveness(self.registry, self._poller.nudge),
            config,
            self._tokens,
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
        try:
            await self._open_listeners(max_connections)
        except BaseException:  # what is left open would keep the process from ending
            await self.close()
            raise
        self._poller.start()
        self.table.start()
        self._residents.start()
        self._ready = True

    async def close(self) -> None:
        """Stop accepting, tell the waiters, let running answers end, close everything."""
        self._ready = False
        for listener in self._listeners:
            listener.server.leave()
        await self._residents.close()
        await self._poller.close()
        await self.table.close()
        self._events.close()
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        await self._unloads.close()
        await self._state.close()
        await self._endpoints.close()
        await self._exchange.close()
        await self._session.close()
        self._accounting.settle()
        await self._resolver.close()

    def _keep_footprints(self) -> None:
        snapshot, measured = self.registry.snapshot, self.registry.ledger.footprints
        footprints = noted(measured, snapshot.catalogue.profiles)
        self._state.put(msgspec.structs.replace(self._state.state, footprints=footprints))

    async def _open_listeners(self, max_connections: int) -> None:
        settings = self._config.gateway
        inference = {path: {"POST": self._relay.serve} for path in INFERENCE_PATHS}
        metrics = {"/metrics": read(self._metrics)}
        reads: dict[str, Methods] = {
            "/": read(self._front),
            "/health": read(self._health),
            "/ready": read(self._readiness),
            "/version": read(self._version),
            "/v1/models": read(self._list_models),
            "/api/fleet": read(self._fleet),
            "/api/explain": read(self._explain),
            "/api/events": {"GET": self._stream},
        }
        cards = {MODEL_PREFIX: read(self._one_model)}
        main = inference | reads | (metrics if settings.metrics_listen is None else {})
        listener = await self._listen("listen", settings.listen, main, cards, max_connections)
        self.address = listener.address
        if settings.metrics_listen is not None:
            await self._listen("metrics_listen", settings.metrics_listen, metrics)
        if settings.admin_listen:
            admin = Admin(self._operator, settings.admin_listen)
            listener = await self._listen(
                "admin_listen",
                settings.admin_listen,
                reads | metrics,
                cards | dict(admin.routes),
            )
            self.admin_address = spelt(listener.address)

    async def _listen(
        self,
        key: str,
        where: str,
        paths: Mapping[str, Methods],
        prefixes: Mapping[str, Methods] = MappingProxyType({}),
        max_connections: int = FEW_CONNECTIONS,
    ) -> Listener:
        settings = self._config.gateway
        server = DoorServer(
            Face(self.metrics, paths, prefixes).handle,
            self._refuse,
            max_body=settings.max_body,
            max_connections=max_connections,
        )
        listener = await open_listener(
            server, key, where, shutdown_timeout=settings.shutdown_timeout
        )
        self._listeners.append(listener)
        return listener

    def _refuse(self, request: web.BaseRequest | None, kind: Kind, words: str) -> web.Response:
        """The answer to what never becomes a request of ours."""
        self.metrics.refusals.inc(kind.code)
        refusal = Refusal(kind, words)
        if request is None:
            return answer(refusal, "openai", new_request_id())
        return answer(refusal, dialect_of(request.path), request_id(request))

    async def _front(self, inbound: Inbound) -> web.Response:
        return as_json(inbound, {"name": "cortexd", "version": __version__, "models": "/v1/models"})

    async def _health(self, inbound: Inbound) -> web.Response:
        return as_json(
            inbound,
            condition(
                self.registry.snapshot,
                self.table.longest_wait(),
                self._config.loading.timeout + PATIENCE,
            ),
        )

    async def _readiness(self, inbound: Inbound) -> web.Response:
        ready = self._ready and self.registry.snapshot.healthy > 0
        return as_json(inbound, {"ready": ready}, status=200 if ready else 503)

    async def _version(self, inbound: Inbound) -> web.Response:
        return as_json(inbound, {"version": __version__})

    async def _list_models(self, inbound: Inbound) -> web.Response:
        return as_json(inbound, self._models.list(self.registry.snapshot, self.registry.ledger))

    async def _one_model(self, inbound: Inbound) -> web.Response:
        name = inbound.path.removeprefix(MODEL_PREFIX)
        return as_json(
            inbound, self._models.card(name, self.registry.snapshot, self.registry.ledger)
        )

    async def _fleet(self, inbound: Inbound) -> web.Response:
        waiting = sum(self.table.waiting().values())
        fleet = view(
            self.registry.snapshot,
            self.registry.ledger,
            self.table.entries(),
            waiting,
            time.monotonic(),
        )
        return as_json(inbound, fleet)

    async def _explain(self, inbound: Inbound) -> web.Response:
        name = inbound.request.rel_url.query.get("model", "")
        if not name:
            raise Refusal(
                errors.MISSING_MODEL, "Name a model: /api/explain?model=NAME.", param="model"
            )
        explanation = explain(name, self.registry.snapshot, self.registry.ledger, time.monotonic())
        return as_json(inbound, explanation)

    async def _stream(self, inbound: Inbound) -> web.StreamResponse:
        return await stream_events(inbound, self._events)

    async def _metrics(self, inbound: Inbound) -> web.Response:
        self._accounting.settle()
        parts = []
        for part in self.metrics.exposition():
            parts.append(part)
            await asyncio.sleep(0)  # between two families others may have their turn
        return web.Response(
            body=b"".join(parts),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            | own_headers(inbound.dialect, inbound.request_id),
        )


def _policy(config: Config) -> Policy:
    eviction = config.eviction
    return Policy(
        affinity=config.routing.affinity == "prefix",
        stale_after=3 * config.polling.interval,
        evicts=eviction.enabled,
        patience=eviction.patience,
        gate_timeout=eviction.gate_timeout,
        min_residency=None if eviction.min_residency.is_auto else eviction.min_residency,
        idle_ttl=eviction.idle_ttl,
    )


def read_certificates(config: Config, base: Path) -> ssl.SSLContext | None:
    """Whom to trust behind https, when it is not the system's choice. Raises OSError."""
    file = config.upstream.ca_file
    return None if file is None else ssl.create_default_context(cafile=base / file)
