"""Which requests are ended and which replicas are named, by timestamps alone; a real node that is
stopped is in `tests.functional.test_frozen_node`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import msgspec
import pytest
from aiohttp import web

from cortexd.config.current import Current
from cortexd.config.gateway import Config, Upstream
from cortexd.config.units import Duration
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.snapshot import Replica
from cortexd.gateway.upstream_watch import UpstreamWatch
from cortexd.proxy.answer import UpstreamFault
from cortexd.proxy.call import InProgress
from cortexd.proxy.exchange import Exchange
from tests.fakes import FakeNeuron
from tests.fleet.fleet import node
from tests.gateway.fleet import FAST, running_fleet
from tests.waiting import eventually, until

KEY = ("a", "m")
NOW = 1000.0


class OneRequest:
    """The timestamps of a request that was sent at 0."""

    sent = 0.0

    def __init__(self, *, is_unanswered: bool = True, quiet_since: float = 0.0, epoch: int = 0):
        self.is_unanswered = is_unanswered
        self.quiet_since = quiet_since
        self.target_key = Replica("a", "m", "loaded", epoch=epoch)
        self.fault: UpstreamFault | None = None

    def interrupt(self, fault: UpstreamFault) -> None:
        self.fault = fault


class Requests(Exchange):
    """Requests under way whose timestamps a test chooses."""

    def __init__(self, *requests: OneRequest) -> None:
        self.requests = requests

    def in_progress(self) -> Iterator[InProgress]:
        return iter(self.requests)


def watch(
    *requests: OneRequest,
    status: str = "loaded",
    unhealthy_since: float | None = None,
    silent_after: float = 60,
) -> UpstreamWatch:
    """A look at a node `a` that has `m`."""
    there = msgspec.structs.replace(
        node("a", {"m": status}),
        healthy=unhealthy_since is None,
        unhealthy_since=unhealthy_since,
    )
    registry = Registry([there], Catalogue.of((), {}), Events(), unhealthy_after=1)
    upstream = Upstream(dead_node_grace=Duration(10), silent_after=Duration(silent_after))
    return UpstreamWatch(registry, Requests(*requests), Current(Config(upstream=upstream)))


async def test_request_without_bytes_ends_after_dead_node_grace() -> None:
    request = OneRequest()
    watch(request, unhealthy_since=NOW - 9.9).look(NOW)
    assert request.fault is None
    watch(request, unhealthy_since=NOW - 10).look(NOW)
    assert request.fault is not None
    assert request.fault.what == "dead"


@pytest.mark.parametrize(
    ("request_", "unhealthy_since"),
    [
        (OneRequest(), None),
        (OneRequest(is_unanswered=False, quiet_since=NOW - 1), 0.0),
        (OneRequest(epoch=1), 0.0),
    ],
    ids=["healthy", "still delivers bytes", "sent to a predecessor of that name"],
)
async def test_request_that_may_still_be_answered_goes_on(
    request_: OneRequest, unhealthy_since: float | None
) -> None:
    watch(request_, unhealthy_since=unhealthy_since).look(NOW)
    assert request_.fault is None


async def test_silent_replica_is_logged_once_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cortexd.gateway.upstream_watch")
    requests = Requests(OneRequest())
    watching = watch(*requests.requests)
    watching.look(59.0)
    assert watching.unanswered == {KEY: 0.0}
    assert not watching.silent
    for now in (60.0, 61.0, 75.0):
        watching.look(now)
    assert watching.silent == {KEY: 75.0}
    watching._exchange = Requests()
    watching.look(80.0)
    assert not watching.silent
    warning, info = caplog.records
    assert (warning.levelname, info.levelname) == ("WARNING", "INFO")
    assert "'m' on a has sent nothing for 60 s" in warning.getMessage()
    assert "no longer silent" in info.getMessage()


@pytest.mark.parametrize(
    ("others", "status", "silent_after"),
    [
        ([OneRequest(is_unanswered=False, quiet_since=NOW - 5)], "loaded", 60),
        ([], "reloading", 60),
        ([], "loaded", 0),
    ],
    ids=["it answers another request", "it loads the model", "turned off"],
)
async def test_replica_is_not_silent(
    others: list[OneRequest], status: str, silent_after: float
) -> None:
    watching = watch(OneRequest(), *others, status=status, silent_after=silent_after)
    watching.look(NOW)
    assert watching.unanswered == {KEY: 0.0}
    assert not watching.silent


async def test_replica_that_finished_an_answer_lately_is_not_silent() -> None:
    watching = watch(OneRequest())
    watching._registry.note_answered("a", "m", NOW - 5)
    watching.look(NOW)
    assert not watching.silent
    watching.look(NOW + 55)
    assert watching.silent


async def test_stuck_engine_shows_in_health_and_fleet_until_it_answers() -> None:
    neuron, released = FakeNeuron({"m": "loaded"}), asyncio.Event()
    infer = neuron.infer

    async def stuck(request: web.Request, body: dict[str, object]) -> web.StreamResponse:
        await released.wait()
        return await infer(request, body)

    neuron.infer = stuck
    config = Config(polling=FAST, upstream=Upstream(silent_after=Duration(0.2)))
    async with running_fleet(a=neuron, config=config) as fleet:
        asking = asyncio.create_task(fleet.ask())

        async def is_impaired() -> bool:
            health = (await fleet.get("/health")).json
            return health["status"] == "impaired"

        await eventually(is_impaired)
        [reason] = (await fleet.get("/health")).json["reasons"]
        assert reason.startswith("model m on a has sent nothing for ")
        [model] = (await fleet.get("/api/fleet")).json["nodes"][0]["models"]
        assert model["oldest_unanswered_seconds"] > 0
        released.set()
        assert (await asking).status == 200
        await until(lambda: not fleet.gateway._watch.silent)
        assert (await fleet.get("/health")).json["status"] == "ok"
        [model] = (await fleet.get("/api/fleet")).json["nodes"][0]["models"]
        assert model["oldest_unanswered_seconds"] is None
