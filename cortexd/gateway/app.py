"""The composition root: builds the whole gateway from its configuration, once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from cortexd.config.address import unix_path
from cortexd.config.certificates import Certificates
from cortexd.config.changes import Changes
from cortexd.config.current import Current, Settings
from cortexd.config.gateway import Config, Neuron
from cortexd.config.secrets import token_source
from cortexd.control.alias_watch import AliasWatch
from cortexd.control.coldload import LoadTable
from cortexd.control.dispatch import Dispatcher
from cortexd.control.endpoints import Endpoints
from cortexd.control.events import Events
from cortexd.control.known_models import KnownModels
from cortexd.control.liveness import Liveness
from cortexd.control.loader import Loader
from cortexd.control.operator import Operator
from cortexd.control.poller import Poller
from cortexd.control.registry import Registry
from cortexd.control.reservations import Reservations
from cortexd.control.residents import Residents
from cortexd.control.room import Room
from cortexd.control.roster import Roster, nodes, policy
from cortexd.control.unloads import Unloads
from cortexd.daemon.access import AccessLine, AccessLog
from cortexd.daemon.resolver import Resolver
from cortexd.daemon.state import StateFile, noted, remembered
from cortexd.errors import Kind, Refusal
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet_gauges import FleetCollector
from cortexd.gateway import stored_responses
from cortexd.gateway.accounting import Accounting
from cortexd.gateway.admin import Admin
from cortexd.gateway.browser_access import BrowserAccess
from cortexd.gateway.face import Face
from cortexd.gateway.health import status_line
from cortexd.gateway.intake import new_request_id, request_id
from cortexd.gateway.known_series import KnownSeries
from cortexd.gateway.listeners import Key, Listeners, spelt
from cortexd.gateway.reads import Reads
from cortexd.gateway.refusals import answer, dialect_of
from cortexd.gateway.relay import Relay
from cortexd.gateway.reload import Reload
from cortexd.gateway.shutdown import Shutdown
from cortexd.gateway.upstream_watch import UpstreamWatch
from cortexd.metrics import Metrics
from cortexd.nodes.client import NeuronClient, outward_socket
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.listen import connection_cap
from cortexd.proxy.server import DoorServer

INFERENCE_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
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
FEW_CONNECTIONS = 32  # on each listener but the main one; within what that leaves


class Gateway:
    """One gateway. `start` opens its listeners, `close` ends it.

    tokens: node → the bearer token of its neuron. certificates: whom to trust behind https.
    access: takes the access log. state_dir: keeps what outlives a restart; None: nothing does.
    reread: the settings as they are on disk, for a reload; blocks, raises ConfigError.
    sockets: listening ones of the service manager's, by key.
    """

    def __init__(
        self,
        config: Config,
        *,
        tokens: Mapping[str, str] | None = None,
        certificates: Certificates | None = None,
        access: AccessLog | None = None,
        state_dir: Path | None = None,
        reread: Callable[[], Settings] | None = None,
        sockets: Mapping[Key, Sequence[socket.socket]] | None = None,
    ) -> None:
        self._current = Current(config, tokens, certificates)
        self._access = access
        self._state_dir = state_dir
        self._reread = reread
        self._ready = False
        self.listeners = Listeners(self._serve, sockets or {})

    @property
    def address(self) -> tuple[str, int]:
        """Where clients reach it."""
        listener = self.listeners["listen"]
        return ("", 0) if listener is None else listener.address

    @property
    def url(self) -> str:
        """The same as a URL; unix:/path for a socket file."""
        where = spelt(self.address)
        return where if unix_path(where) is not None else f"http://{where}"

    @property
    def admin_address(self) -> str:
        """Where operators do, as host:port or unix:/path; "": nowhere."""
        listener = self.listeners["admin_listen"]
        return "" if listener is None else spelt(listener.address)

    @property
    def status(self) -> str:
        """How things stand, in one line."""
        in_flight = sum(self.registry.ledger.in_flight.values())
        if not self._ready:
            return f"stopping, {in_flight} in flight"
        return status_line(self.registry.snapshot, in_flight, self._problems())

    async def start(self) -> None:
        """Build everything, open the listeners, start polling.

        Raises CantListen (on a taken port, for instance), TooFewDescriptors.
        """
        current, config = self._current, self._current.config
        self._max_connections = connection_cap()
        self._resolver = Resolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                resolver=self._resolver,
                use_dns_cache=False,
                socket_factory=partial(outward_socket, self.listeners.is_own),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self.metrics = Metrics()
        self._events = Events()
        self._state = StateFile(self._state_dir)
        state = await self._state.open()
        self.registry = Registry(
            nodes(config, state.drained, state.models),
            Catalogue.of(config.models, config.aliases),
            self._events,
            unhealthy_after=config.polling.unhealthy_after,
            policy=policy(config),
        )
        self._known_models = KnownModels(self.registry, self._state)
        self.registry.watchers.append(self._known_models.observed)
        self.registry.watchers.append(AliasWatch(self.registry).observed)
        clients = {
            neuron.name: self._connect(neuron, current.tokens.get(neuron.name))
            for neuron in config.neurons
        }
        self._poller = Poller(self.registry, clients, current, self.metrics)
        profiles = self.registry.snapshot.catalogue.profiles
        self.registry.ledger.footprints.update(remembered(state, profiles))
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
            current,
        )
        self._operator = Operator(self.registry, self.table, self._unloads, self._state, current)
        self._residents = Residents(self.registry, self.table, self._unloads)
        self._endpoints = Endpoints(self.registry, clients, current)
        self._exchange = Exchange(self._resolver, self.listeners.is_own)
        self._watch = UpstreamWatch(self.registry, self._exchange, current)
        dispatcher = Dispatcher(
            self.registry, self.table, self._endpoints, reservations, self._poller.nudge
        )
        self._accounting = Accounting(self.metrics, self.registry, self._write_access)
        self._relay = Relay(
            dispatcher,
            self._exchange,
            self.registry,
            self._accounting,
            Liveness(self.registry, self._poller.nudge),
            current,
        )
        self._roster = Roster(
            self.registry, clients, self._poller, self.table, self._connect, self._forget_node
        )
        self.reload = Reload(
            current, self._reread, self.listeners, self._follow, self.metrics, self._events
        )
        self._known_series = KnownSeries(self.metrics, self.registry)
        self._reads = Reads(
            self.registry,
            self.table,
            self._accounting,
            self.metrics,
            self._known_series,
            self._events,
            current,
            self._watch,
            is_ready=lambda: self._ready,
            problems=self._problems,
        )
        self._admin = Admin(self._operator, self.reload, current)
        self._shutdown = Shutdown(self._interrupt)
        self.metrics.register(
            FleetCollector(
                lambda: self.registry.snapshot,
                self.registry.ledger,
                self.table.waiting,
                self.table.longest_wait,
                time.monotonic,
                self._known_series.pairs.keys(),
                self._known_series.models.keys(),
            )
        )
        try:
            await self.listeners.open(config.gateway)
        except BaseException:  # what is left open would keep the process from ending
            await self.close()
            raise
        self._poller.start()
        self.table.start()
        self._residents.start()
        self._watch.start()
        self._ready = True

    async def close(self) -> None:
        """Stop accepting, tell the waiters, let running answers end, close everything."""
        self._ready = False
        for listener in self.listeners.all:
            listener.leave()
        await self.reload.close()
        await self.listeners.close()
        await self._residents.close()
        await self._watch.close()
        await self._roster.close()
        await self._poller.close()
        await self.table.close()
        self._events.close()
        patience = self._current.config.gateway.shutdown_timeout
        await self._shutdown.run(self.listeners.all, patience)
        await self._unloads.close()
        await self._state.close()
        await self._endpoints.close()
        await self._exchange.close()
        await self._session.close()
        self._accounting.settle()
        await self._resolver.close()

    def hurry(self) -> None:
        """While it closes: wait for no answer any more."""
        self._shutdown.hurry()

    def _serve(self, key: Key) -> DoorServer:
        """The server that stands behind a listener."""
        reads, few = self._reads, FEW_CONNECTIONS
        if key == "listen":
            inference = {path: {"POST": self._relay.serve} for path in INFERENCE_PATHS}
            items = dict.fromkeys(("GET", "DELETE", "POST"), self._relay.serve_item)
            prefixes = reads.prefixes | {stored_responses.PREFIX: items}
            face = Face(self.metrics, inference | reads.paths, prefixes)
            few = self._max_connections
        elif key == "metrics_listen":
            face = Face(self.metrics, reads.metrics, {})
        else:
            paths = reads.paths | reads.metrics | self._admin.paths
            face = Face(self.metrics, paths, reads.prefixes | dict(self._admin.routes))
        access = BrowserAccess(key, face.handle, self._refuse, self._current, self.metrics)
        max_body = self._current.config.gateway.max_body
        return DoorServer(access.handle, access.refuse, max_body=max_body, max_connections=few)

    def _follow(self, settings: Settings, found: Changes) -> None:
        """Have everything follow other settings; nothing here waits."""
        self._roster.follow(settings, found, self._state.state.drained)
        self._relay.limit(settings.config.gateway)
        for listener in self.listeners.all:
            listener.server.limit_bodies(settings.config.gateway.max_body)
        if "security.allowed_inference_hosts" in found.keys:
            self._endpoints.forget()
        self._keep_footprints()

    def _forget_node(self, name: str) -> None:
        self._accounting.settle()
        self.metrics.forget_node(name)
        self._known_series.forget_node(name)
        self._known_models.forget(name)

    def _connect(self, neuron: Neuron, token: str | None) -> NeuronClient:
        current, name = self._current, neuron.name
        return NeuronClient(
            self._session,
            neuron.endpoint,
            token=token,
            token_source=token_source(neuron),
            trusted=lambda: current.certificates.of(name),
        )

    def _problems(self) -> list[str]:
        """Return the gateway's own problems: the last reload, the state directory."""
        return [words for words in (self.reload.trouble, self._state.problem) if words]

    def _interrupt(self) -> None:
        self._exchange.interrupt("the gateway is shutting down")

    def _write_access(self, lines: list[AccessLine]) -> None:
        if self._access is not None and self._current.config.gateway.access_log:
            self._access.write(lines)

    def _keep_footprints(self) -> None:
        snapshot, measured = self.registry.snapshot, self.registry.ledger.footprints
        footprints = noted(measured, snapshot.catalogue.profiles)
        self._state.put(msgspec.structs.replace(self._state.state, footprints=footprints))

    def _refuse(self, request: web.BaseRequest | None, kind: Kind, words: str) -> web.Response:
        """The answer to what never becomes a request of ours."""
        self.metrics.refusals.inc(kind.code)
        refusal = Refusal(kind, words)
        if request is None:
            return answer(refusal, "openai", new_request_id())
        return answer(refusal, dialect_of(request.path), request_id(request))
