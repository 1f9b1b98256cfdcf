"""What may be read of the gateway itself: nothing here changes anything or wakes a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import chain

from aiohttp import web

from cortexd import __version__, errors
from cortexd.config.current import Current
from cortexd.control.coldload import LoadTable
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.errors import Refusal
from cortexd.fleet.explain import explain
from cortexd.gateway.accounting import Accounting
from cortexd.gateway.cors import allowance
from cortexd.gateway.events import stream_events
from cortexd.gateway.face import Methods, as_json, read, unknown_route
from cortexd.gateway.fleet import pieces
from cortexd.gateway.health import condition, failed_loads
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.known_series import KnownSeries
from cortexd.gateway.openai import ModelBook
from cortexd.gateway.refusals import own_headers
from cortexd.gateway.steps import in_steps
from cortexd.gateway.upstream_watch import UpstreamWatch
from cortexd.metrics import Metrics

PATIENCE = 5.0  # seconds by which a wait may be past its bound before something must be wrong
MODEL_PREFIX = "/v1/models/"


class Reads:
    """Answers the read-only paths.

    is_ready: whether requests are accepted. problems: of the gateway itself.
    paths, prefixes: for a face; metrics: for a face that always has them.
    """

    def __init__(
        self,
        registry: Registry,
        table: LoadTable,
        accounting: Accounting,
        metrics: Metrics,
        known_series: KnownSeries,
        events: Events,
        current: Current,
        watch: UpstreamWatch,
        *,
        is_ready: Callable[[], bool],
        problems: Callable[[], list[str]],
    ) -> None:
        self._registry = registry
        self._table = table
        self._accounting = accounting
        self._metrics = metrics
        self._known_series = known_series
        self._events = events
        self._current = current
        self._is_ready = is_ready
        self._problems = problems
        self._watch = watch
        # One large answer at a time: many at once would leave the loop no turn between two steps.
        self._large = asyncio.Lock()
        self._models = ModelBook(created=int(time.time()))
        self.paths: dict[str, Methods] = {
            "/": read(self._front),
            "/health": read(self._health),
            "/ready": read(self._readiness),
            "/version": read(self._version),
            "/api/hello": read(self._hello),
            "/v1/models": read(self._list_models),
            "/api/fleet": read(self._fleet),
            "/api/explain": read(self._explain),
            "/api/events": {"GET": self._stream},
            "/metrics": read(self._metrics_unless_elsewhere),
        }
        self.prefixes: dict[str, Methods] = {MODEL_PREFIX: read(self._one_model)}
        self.metrics: dict[str, Methods] = {"/metrics": read(self._exposition)}

    async def _front(self, inbound: Inbound) -> web.Response:
        return as_json(inbound, {"name": "cortexd", "version": __version__, "models": "/v1/models"})

    async def _health(self, inbound: Inbound) -> web.Response:
        return as_json(
            inbound,
            condition(
                self._registry.snapshot,
                self._table.longest_wait(),
                self._current.config.loading.timeout + PATIENCE,
                self._problems(),
                self._watch.silent,
                failed_loads(self._registry.snapshot, self._registry.ledger, time.monotonic()),
            ),
        )

    async def _readiness(self, inbound: Inbound) -> web.Response:
        ready = self._is_ready() and self._registry.snapshot.healthy > 0
        return as_json(inbound, {"ready": ready}, status=200 if ready else 503)

    async def _version(self, inbound: Inbound) -> web.Response:
        return as_json(inbound, {"version": __version__})

    async def _hello(self, inbound: Inbound) -> web.Response:
        """Answer the probe of an agent that checks whether its API is reachable."""
        return as_json(inbound, {"message": "hello"})

    async def _list_models(self, inbound: Inbound) -> web.Response:
        registry = self._registry
        listed = self._models.cached(registry.snapshot, registry.ledger)
        if listed is None:
            async with self._large:
                listed = self._models.cached(registry.snapshot, registry.ledger)
                if listed is None:
                    listed = await self._models.encoded(registry.snapshot, registry.ledger)
        return _json(inbound, listed)

    async def _one_model(self, inbound: Inbound) -> web.Response:
        name = inbound.path.removeprefix(MODEL_PREFIX).rstrip("/")
        if not name:
            return await self._list_models(inbound)
        return as_json(
            inbound, self._models.card(name, self._registry.snapshot, self._registry.ledger)
        )

    async def _fleet(self, inbound: Inbound) -> web.Response:
        waiting = sum(self._table.waiting().values())
        async with self._large:
            fleet = await in_steps(
                pieces(
                    self._registry.snapshot,
                    self._registry.ledger,
                    self._table.entries(),
                    waiting,
                    time.monotonic(),
                    self._watch.unanswered,
                )
            )
        return _json(inbound, fleet)

    async def _explain(self, inbound: Inbound) -> web.Response:
        name = inbound.request.rel_url.query.get("model", "")
        if not name:
            raise Refusal(
                errors.MISSING_MODEL, "Name a model: /api/explain?model=NAME.", param="model"
            )
        snapshot, ledger = self._registry.snapshot, self._registry.ledger
        return as_json(inbound, explain(name, snapshot, ledger, time.monotonic()))

    async def _stream(self, inbound: Inbound) -> web.StreamResponse:
        origins = self._current.config.gateway.cors_origins
        return await stream_events(inbound, self._events, allowance(inbound.request, origins))

    async def _metrics_unless_elsewhere(self, inbound: Inbound) -> web.Response:
        if self._current.config.gateway.metrics_listen is not None:
            raise unknown_route(inbound)
        return await self._exposition(inbound)

    async def _exposition(self, inbound: Inbound) -> web.Response:
        self._accounting.settle()
        async with self._large:
            written = chain(self._known_series.expect(), self._metrics.exposition())
            text = await in_steps(piece.encode() for piece in written)
        return web.Response(
            body=text,
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            | own_headers(inbound.dialect, inbound.request_id),
        )


def _json(inbound: Inbound, body: bytes) -> web.Response:
    """Return an answer whose JSON is encoded already."""
    return web.Response(
        body=body,
        content_type="application/json",
        headers=own_headers(inbound.dialect, inbound.request_id),
    )
