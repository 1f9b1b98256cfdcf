"""What one request leaves in the metrics and in the access log, however it ended."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from cortexd.config.catalogue import Profile
from cortexd.control.dispatch import RouteDecision
from cortexd.control.events import Events
from cortexd.control.registry import Registry
from cortexd.daemon.access import AccessLine, AccessLog
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.snapshot import Replica
from cortexd.gateway import accounting
from cortexd.gateway.accounting import BATCH, CLIENT_GONE, UNCOUNTED, Accounting
from cortexd.gateway.inbound import Inbound
from cortexd.metrics import Metrics
from cortexd.proxy.call import Carried
from cortexd.wire.usage import Usage
from tests.fakes import FakeNeuron
from tests.fleet.fleet import node
from tests.functional.faults import Send
from tests.functional.raw import connected, post
from tests.gateway.fleet import running_fleet
from tests.proxy.stage import ASKED_STREAM, staged, streamed
from tests.waiting import GUARD

CHAT = "/v1/chat/completions"
TOKENS = Usage(7, 100, 5)
AGO = 1000.0  # seconds since the request came, its first byte half way: no delay here matters


class Books:
    """The accounting of a gateway with a node `a` that holds `m`, and `c` in its catalogue."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.lines: list[AccessLine] = []
        self.registry = Registry(
            [node("a", {"m": "loaded"})],
            Catalogue.of((Profile("c"),), {}),
            Events(),
            unhealthy_after=1,
        )
        self.accounting = Accounting(self.metrics, self.registry, self.lines.extend)

    def ended(self, inbound: Inbound) -> None:
        """It ends, and is entered."""
        self.accounting.ended(inbound)
        self.accounting.settle()

    def of(self, name: str, **labels: str) -> float | None:
        """A sample; None where there is none."""
        return self.metrics.registry.get_sample_value(f"cortexd_{name}", labels)

    def count(self, name: str) -> float:
        """All samples of that name."""
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"cortexd_{name}"
        )

    def route(self, how: Any = "loaded") -> RouteDecision:
        lease = self.registry.lease("a", "m")
        lease.release()
        return RouteDecision(Replica("a", "m", "loaded"), "http://a", how, lease)

    def inbound(self, **fields: Any) -> Inbound:
        now = time.monotonic()
        request = make_mocked_request("POST", CHAT)
        return Inbound(
            **{  # type: ignore[arg-type]
                "request": request,
                "path": CHAT,
                "request_id": "req_1",
                "dialect": "openai",
                "received": now - AGO,
                "model": "m",
                "route": self.route(),
                "status": 200,
            }
            | fields
        )

    def sent(self, *, waited: float) -> Inbound:
        """A request that waited for so long and was then sent."""
        inbound, route = self.inbound(), self.route("cold")
        self.accounting.routed(inbound, msgspec.structs.replace(route, waited=waited))
        return inbound

    def answered(
        self,
        *,
        usage: Usage | None = TOKENS,
        interrupted: bool = False,
        token_after: float | None = AGO * 3 / 4,
        **fields: Any,
    ) -> Inbound:
        """A request whose upstream has answered."""
        inbound = self.inbound(**fields)
        first = inbound.received + AGO / 2
        token = None if token_after is None else inbound.received + token_after
        inbound.carried = Carried(inbound.status, first, usage, interrupted, token)
        return inbound


@pytest.fixture
async def books() -> Books:
    return Books()


@pytest.mark.parametrize(
    ("model", "label"), [("m", "m"), ("c", "c"), ("invented", "_other"), (None, "_other")]
)
async def test_only_a_known_model_is_a_label(books: Books, model: str | None, label: str) -> None:
    books.ended(books.inbound(model=model, status=404, route=None))
    assert books.of("requests_total", model=label, path=CHAT, status="404") == 1
    assert books.of("request_duration_seconds_count", model=label, node="_other") == 1
    assert books.count("requests_total") == books.count("request_duration_seconds_count") == 1


async def test_finished_answer_is_noted_for_its_replica(books: Books) -> None:
    inbound = books.answered()
    books.ended(inbound)
    assert books.registry.ledger.answered == {("a", "m"): inbound.ended}


async def test_tokens_are_counted_for_the_node_that_made_them(books: Books) -> None:
    books.ended(books.answered())
    assert books.of("prompt_tokens_total", model="m", node="a") == 7
    assert books.of("completion_tokens_total", model="m", node="a") == 100
    assert books.of("cached_prompt_tokens_total", model="m", node="a") == 5
    assert books.count("usage_missing_total") == 0


@pytest.mark.parametrize(
    ("path", "status", "missing"),
    [(CHAT, 200, 1), (CHAT, 400, 0), *((path, 200, 0) for path in sorted(UNCOUNTED))],
)
async def test_tokens_are_missed_only_where_an_answer_has_some(
    books: Books, path: str, status: int, missing: int
) -> None:
    books.ended(books.answered(usage=None, path=path, status=status))
    assert books.count("usage_missing_total") == missing
    assert books.count("prompt_tokens_total") == 0


async def test_stream_has_first_byte_and_first_token_and_a_rate_from_then_on(books: Books) -> None:
    books.ended(books.answered(is_stream=True))
    where = {"model": "m", "node": "a"}
    assert books.of("time_to_first_byte_seconds_sum", **where) == pytest.approx(AGO / 2)
    assert books.of("time_to_first_token_seconds_sum", **where) == pytest.approx(AGO * 3 / 4)
    rate = books.of("output_tokens_per_second_sum", **where)
    assert rate == pytest.approx(100 / (AGO / 4), rel=0.1)
    assert books.of("request_duration_seconds_sum", **where) == pytest.approx(AGO, rel=0.1)


async def test_stream_without_tokens_has_only_a_first_byte(books: Books) -> None:
    books.ended(books.answered(is_stream=True, token_after=None))
    assert books.count("time_to_first_byte_seconds_count") == 1
    assert books.count("time_to_first_token_seconds_count") == 0
    rate = books.of("output_tokens_per_second_sum", model="m", node="a")
    assert rate == pytest.approx(100 / (AGO / 2), rel=0.1)


@pytest.mark.parametrize("fields", [{}, {"is_stream": True, "status": 500}])
async def test_what_is_no_good_stream_has_neither(books: Books, fields: dict[str, Any]) -> None:
    books.ended(books.answered(**fields))
    assert books.count("time_to_first_byte_seconds_count") == 0
    assert books.count("time_to_first_token_seconds_count") == 0
    assert books.count("output_tokens_per_second_count") == 0


@pytest.mark.parametrize(("begun", "interrupted"), [(True, 1), (False, 0)])
async def test_a_client_that_leaves_interrupts_only_what_has_begun(
    books: Books, begun: bool, interrupted: int
) -> None:
    books.ended(books.inbound(status=CLIENT_GONE, is_open=begun))
    assert books.count("streams_interrupted_total") == interrupted
    assert (books.of("streams_interrupted_total", by="client") or 0) == interrupted
    assert books.of("requests_total", model="m", path=CHAT, status="499") == 1


async def test_an_answer_that_broke_off_counts_as_such_and_with_its_tokens(books: Books) -> None:
    books.ended(books.answered(interrupted=True, is_open=True))
    assert books.of("streams_interrupted_total", by="upstream") == 1
    assert books.count("streams_interrupted_total") == 1
    assert books.of("completion_tokens_total", model="m", node="a") == 100


async def test_the_gateways_own_time_is_the_time_until_it_sends_less_the_wait_for_a_load(
    books: Books,
) -> None:
    books.ended(books.sent(waited=AGO - 100))
    assert books.of("gateway_overhead_seconds_sum") == pytest.approx(100, rel=0.1)
    books.ended(books.sent(waited=AGO + 1))
    assert books.of("gateway_overhead_seconds_sum") == pytest.approx(100, rel=0.1)  # never less
    assert books.of("gateway_overhead_seconds_count") == 2


async def test_what_never_went_upstream_tells_nothing_of_the_gateways_own_time(
    books: Books,
) -> None:
    books.ended(books.inbound(status=404, route=None))
    assert books.of("gateway_overhead_seconds_count") == 0


@pytest.mark.parametrize(("how", "cold"), [("loaded", 0), ("lazy", 1), ("cold", 1)])
async def test_a_cold_start_is_a_request_that_met_no_loaded_model(
    books: Books, how: str, cold: int
) -> None:
    books.accounting.routed(books.inbound(), books.route(how))
    assert books.count("cold_starts_total") == cold
    assert (books.of("cold_starts_total", model="m", node="a", kind=how) or 0) == cold


async def test_every_attempt_and_every_retry_counts(books: Books) -> None:
    books.accounting.failed(books.route(), "refused")
    books.accounting.retried("refused")
    books.ended(books.answered())
    assert books.of("upstream_requests_total", model="m", node="a", result="refused") == 1
    assert books.of("upstream_requests_total", model="m", node="a", result="200") == 1
    assert books.of("upstream_retries_total", reason="refused") == 1


async def test_what_has_ended_is_entered_by_itself_when_there_is_enough_of_it(
    books: Books,
) -> None:
    for _ in range(BATCH - 1):
        books.accounting.ended(books.answered())
    assert books.lines == []
    books.accounting.ended(books.answered())
    assert len(books.lines) == books.count("requests_total") == BATCH


async def test_what_has_ended_is_entered_by_itself_after_a_moment(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "DELAY", 0.0)
    entered = asyncio.Event()
    few = Accounting(books.metrics, books.registry, lambda lines: entered.set())
    for _ in range(2):
        few.ended(books.answered())
        async with asyncio.timeout(GUARD):
            await entered.wait()
        entered.clear()
    assert books.count("requests_total") == 2


async def test_a_served_request_is_one_line_that_says_where_and_how(books: Books) -> None:
    books.ended(books.answered(is_stream=True))
    [line] = books.lines
    assert (line.request_id, line.path, line.status, line.code) == ("req_1", CHAT, 200, None)
    assert (line.model, line.node, line.route) == ("m", "a", "loaded")
    assert (line.prompt_tokens, line.completion_tokens) == (7, 100)
    assert line.duration_s == pytest.approx(AGO, rel=0.1)
    assert line.first_byte_s == pytest.approx(AGO / 2)


async def test_a_refused_request_is_one_line_that_says_why(books: Books) -> None:
    books.ended(books.inbound(model="invented", status=404, code="model_not_found", route=None))
    [line] = books.lines
    assert (line.status, line.code, line.model) == (404, "model_not_found", "invented")
    assert (line.node, line.route, line.first_byte_s, line.prompt_tokens) == (None,) * 4


async def test_without_an_access_log_everything_still_counts() -> None:
    books = Books()
    silent = Accounting(books.metrics, books.registry)
    silent.ended(books.answered())
    silent.settle()
    assert books.count("requests_total") == 1
    assert books.lines == []


async def test_no_first_byte_comes_before_its_request() -> None:
    """An upstream on the same machine answers well within a tick of the loop's clock."""
    log = io.StringIO()
    script = [Send(streamed())]
    async with staged(script, access=AccessLog(log)) as stage, stage.client() as client:
        for _ in range(50):
            assert (await client.ask(post(ASKED_STREAM))).complete
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) == 50
    assert all(0 <= line["first_byte_s"] <= line["duration_s"] for line in lines)


async def test_a_connection_that_waits_to_be_accepted_shows_in_the_overhead() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        await fleet.ask()
        before = await fleet.metric("cortexd_gateway_overhead_seconds_sum")
        async with connected(fleet.gateway.address) as client:
            # From here to the wait for the answer the gateway has no turn: it is busy.
            client.sock.send(post(b'{"model":"m"}'))
            busy_until = time.monotonic() + 0.2
            while time.monotonic() < busy_until:
                pass
            assert (await client.read_answer()).status == 200
        overhead = await fleet.metric("cortexd_gateway_overhead_seconds_sum") - before
        assert overhead > 0.15
