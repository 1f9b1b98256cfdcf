"""What is tried again and what never is: only while nothing of an answer went to the client."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from cortexd.daemon.access import AccessLog
from tests.functional.faults import (
    Close,
    Origin,
    Pause,
    Peer,
    Read,
    Reset,
    Script,
    Send,
    Stall,
    Wait,
    black_hole,
    refusing,
)
from tests.functional.raw import post
from tests.gateway.fleet import running_fleet
from tests.proxy.stage import (
    ANSWER,
    ASKED,
    ASKED_STREAM,
    CHUNKED,
    EVENTS,
    JSON,
    OK,
    SSE_HEAD,
    STREAM,
    ask,
    chunks,
    head,
    in_turn,
    is_refusal,
    origins,
    replicas,
    served_by,
    sized,
    staged,
    streamed,
    upstream,
)
from tests.waiting import until

GOOD = [Send(sized())]
BUSY = b'{"error": {"message": "all slots are busy",\n  "code": 429}}\n'
BODIES = {"plain": (ASKED, ANSWER), "stream": (ASKED_STREAM, STREAM)}


def busy(status: str, body: bytes = BUSY, retry_after: str = "7") -> Script:
    return [Send(sized(body, f"Retry-After: {retry_after}", "X-Extra: 1", status=status))]


@pytest.mark.parametrize("mode", BODIES)
async def test_a_refused_connection_is_tried_on_another_replica(mode: str) -> None:
    asked, expected = BODIES[mode]
    good = Origin([Send(streamed() if mode == "stream" else sized())])
    with refusing() as bad:
        async with good.running(), replicas(bad, good.url) as fleet:
            heard = await ask(fleet, asked)
            assert (heard.status, heard.complete, heard.body) == (200, True, expected)
            assert len(good.requests) == 1
            assert await fleet.metric("cortexd_upstream_retries_total", reason="refused") == 1
            assert not fleet.gateway.registry.ledger.in_flight


@pytest.mark.parametrize("retries", [0, 1, 2])
async def test_refused_connections_are_tried_as_often_as_configured(retries: int) -> None:
    with refusing() as bad:
        async with replicas(*[bad] * 5, config=upstream(retries=retries)) as fleet:
            assert is_refusal(await ask(fleet), "upstream_failed", 502)
            made = await fleet.metric("cortexd_upstream_requests_total", result="refused")
            assert made == retries + 1


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("mode", BODIES)
async def test_an_end_before_any_byte_is_tried_once_on_another_replica(
    mode: str, end: Close | Reset
) -> None:
    asked, expected = BODIES[mode]
    turns = in_turn([end], [Send(streamed() if mode == "stream" else sized())])
    one, two = Origin(answer=turns), Origin(answer=turns)
    async with origins(one, two) as fleet:
        heard = await ask(fleet, asked, "X-Request-Id: same")
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        (first,), (second,) = one.requests, two.requests
        assert first.body == second.body == asked
        assert first.all("x-request-id") == second.all("x-request-id") == ["same"]


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("count", [1, 2, 4])
async def test_an_end_before_any_byte_is_tried_exactly_once_more(
    count: int, end: Close | Reset
) -> None:
    """A prompt that kills an engine must not be carried to every engine."""
    nodes = [Origin([end]) for _ in range(count)]
    async with origins(*nodes) as fleet:
        assert is_refusal(await ask(fleet), "upstream_failed", 502)
        assert sum(len(node.requests) for node in nodes) == 2
        assert not fleet.gateway.registry.ledger.in_flight


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_an_end_before_any_byte_is_tried_on_the_same_replica_when_it_is_the_only_one(
    end: Close | Reset,
) -> None:
    async with staged([end], GOOD) as stage:
        assert (await stage.ask()).body == ANSWER
        assert len(stage.origin.requests) == 2


async def test_an_end_before_any_byte_is_not_tried_again_with_no_retries() -> None:
    nodes = [Origin([Reset()]) for _ in range(2)]
    async with origins(*nodes, config=upstream(retries=0)) as fleet:
        assert is_refusal(await ask(fleet), "upstream_failed", 502)
        assert sum(len(node.requests) for node in nodes) == 1


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_an_end_over_a_second_after_sending_is_not_tried_again(
    asked: bytes, end: Close | Reset
) -> None:
    nodes = [Origin([Wait(1.2), end]) for _ in range(2)]
    async with origins(*nodes) as fleet:
        assert is_refusal(await ask(fleet, asked), "upstream_failed", 502)
        assert sum(len(node.requests) for node in nodes) == 1


@pytest.mark.parametrize(
    "begun",
    [b"H", head(OK, JSON)[:-2], head(OK, JSON, "Content-Length: 5"), SSE_HEAD + b"1"],
    ids=["a byte", "most of a head", "a head", "a byte of a chunk's size"],
)
@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_an_answer_that_has_begun_is_not_tried_again(
    begun: bytes, end: Close | Reset
) -> None:
    nodes = [Origin([Send(begun), end]) for _ in range(2)]
    async with origins(*nodes) as fleet:
        heard = await ask(fleet, ASKED_STREAM)
        assert not heard.complete or is_refusal(heard, "upstream_failed", 502)
        assert sum(len(node.requests) for node in nodes) == 1


async def test_a_silent_upstream_is_not_tried_elsewhere() -> None:
    nodes = [Origin([Stall()]) for _ in range(2)]
    async with origins(*nodes, config=upstream(first_byte_timeout=0.1)) as fleet:
        assert is_refusal(await ask(fleet, ASKED_STREAM), "upstream_timeout", 504)
        assert sum(len(node.requests) for node in nodes) == 1


async def test_a_connection_that_is_not_made_in_time_is_tried_elsewhere() -> None:
    """The other time-outs are not: there, the request may have been seen."""
    good = Origin(GOOD)
    with black_hole() as nowhere:
        async with (
            good.running(),
            replicas(nowhere, good.url, config=upstream(connect_timeout=0.1)) as fleet,
        ):
            assert (await ask(fleet)).body == ANSWER
            assert len(good.requests) == 1


@pytest.mark.parametrize("status", ["HTTP/1.1 429 Too Many Requests", "HTTP/1.1 503 Unavailable"])
@pytest.mark.parametrize("mode", BODIES)
async def test_a_busy_replica_makes_way_for_one_that_is_as_good(mode: str, status: str) -> None:
    asked, expected = BODIES[mode]
    turns = in_turn(busy(status), [Send(streamed() if mode == "stream" else sized())])
    one, two = Origin(answer=turns), Origin(answer=turns)
    async with origins(one, two) as fleet:
        heard = await ask(fleet, asked)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        assert (len(one.requests), len(two.requests)) == (1, 1)
        assert heard.all("retry-after") == heard.all("x-extra") == []


@pytest.mark.parametrize("status", ["HTTP/1.1 429 Too Many Requests", "HTTP/1.1 503 Unavailable"])
@pytest.mark.parametrize("asked", [ASKED, ASKED_STREAM], ids=["plain", "stream"])
async def test_a_busy_answer_passes_intact_when_there_is_no_other_replica(
    asked: bytes, status: str
) -> None:
    async with staged(busy(status)) as stage:
        heard = await stage.ask(asked)
        assert (f"HTTP/1.1 {heard.status}", heard.body) == (status[:12], BUSY)
        assert heard.complete
        assert (heard.get("retry-after"), heard.get("x-extra")) == ("7", "1")
        assert heard.get("content-type") == "application/json"
        assert heard.code is None, "it is the node's own answer"
        assert len(stage.origin.requests) == 1


async def test_busy_everywhere_is_one_of_the_answers_intact() -> None:
    status = "HTTP/1.1 429 Too Many Requests"
    nodes = [Origin(busy(status, b'{"by": %d}' % number, str(number))) for number in (1, 2)]
    async with origins(*nodes) as fleet:
        heard = await ask(fleet)
        assert (heard.status, heard.complete) == (429, True)
        assert (heard.body, heard.get("retry-after")) in [(b'{"by": 1}', "1"), (b'{"by": 2}', "2")]
        assert [len(node.requests) for node in nodes] == [1, 1]


async def test_a_busy_answer_passes_when_no_retries_are_configured() -> None:
    nodes = [Origin(busy("HTTP/1.1 429 Too Many Requests")) for _ in range(2)]
    async with origins(*nodes, config=upstream(retries=0)) as fleet:
        assert (await ask(fleet)).body == BUSY
        assert sum(len(node.requests) for node in nodes) == 1


async def test_a_busy_answer_passes_when_the_other_replica_is_busier() -> None:
    free = Origin(busy("HTTP/1.1 429 Too Many Requests"))
    loaded = Origin([Stall()])
    async with free.running(), loaded.running():
        new = served_by(free.url)
        new.models.clear()
        async with running_fleet(a=new, b=served_by(loaded.url)) as fleet:
            waiting = [asyncio.create_task(ask(fleet)) for _ in range(6)]
            await until(lambda: len(loaded.requests) == 6)
            new.models["m"] = "loaded"
            await until(lambda: fleet.gateway.registry.replica("a", "m") is not None)
            heard = await ask(fleet)
            assert (heard.status, heard.body, heard.get("retry-after")) == (429, BUSY, "7")
            assert (len(free.requests), len(loaded.requests)) == (1, 6)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("status", [400, 404, 408, 413, 422, 500, 501, 502, 504])
async def test_any_other_answer_passes_and_is_not_tried_again(status: int) -> None:
    nodes = [Origin([Send(sized(BUSY, status=f"HTTP/1.1 {status} No"))]) for _ in range(2)]
    async with origins(*nodes) as fleet:
        heard = await ask(fleet)
        assert (heard.status, heard.complete, heard.body) == (status, True, BUSY)
        assert heard.code is None
        assert sum(len(node.requests) for node in nodes) == 1


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("mode", BODIES)
async def test_an_idle_connection_that_the_upstream_closed_costs_no_request(
    mode: str, end: Close | Reset
) -> None:
    asked, expected = BODIES[mode]
    answer = Send(streamed() if mode == "stream" else sized())
    async with staged([answer, end], [answer]) as stage:
        for _ in range(2):
            heard = await stage.ask(asked)
            assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        assert len(stage.origin.requests) == 2


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("size", [10, 40_000_000], ids=["short", "long"])
async def test_a_pooled_connection_that_ends_under_a_request_costs_no_request(
    size: int, end: Close | Reset
) -> None:
    """Upstream's time-out for idle connections and our request cross on the wire."""
    body = json.dumps({"model": "m", "filler": "x" * size}).encode()

    def answer(peer: Peer) -> Script:
        return [Read(1), end] if peer.requests else GOOD

    async with staged(origin=Origin(answer=answer)) as stage:
        assert (await stage.ask()).body == ANSWER
        heard = await stage.ask(body)
        assert (heard.status, heard.body) == (200, ANSWER)
        assert stage.origin.requests[-1].body == body


async def test_a_pool_of_dead_connections_costs_no_request() -> None:
    """The upstream was restarted: each of its old connections resets what comes."""
    all_here = asyncio.Event()

    def answer(peer: Peer) -> Script:
        return [Read(1), Reset()] if peer.requests else [Pause(all_here), *GOOD]

    async with staged(origin=Origin(answer=answer)) as stage:
        asking = [asyncio.create_task(stage.ask()) for _ in range(4)]
        await until(lambda: len(stage.origin.requests) == 4)
        all_here.set()
        assert {heard.body for heard in await asyncio.gather(*asking)} == {ANSWER}
        for _ in range(4):
            assert (await stage.ask()).body == ANSWER


async def test_a_retry_keeps_the_clients_connection_in_order() -> None:
    async with staged([Reset()], GOOD) as stage, stage.client() as client:
        await client.send(post(ASKED) * 2)
        for _ in range(2):
            assert (await client.read_answer()).body == ANSWER


# Answers that are broken in the read that brings their head.
BROKEN = {
    "a broken chunk": SSE_HEAD + b"nonsense\r\n",
    "a broken chunk after a good one": SSE_HEAD + chunks(EVENTS[0]) + b"nonsense\r\n",
    "a broken chunk of JSON": head(OK, JSON, CHUNKED) + b"\xff\r\n",
}


@pytest.mark.parametrize("mode", BODIES)
@pytest.mark.parametrize("name", BROKEN)
async def test_answer_that_is_broken_in_its_first_read_is_asked_of_another_replica(
    name: str, mode: str
) -> None:
    asked, expected = BODIES[mode]
    log = io.StringIO()
    bad, good = Origin([Send(BROKEN[name]), Stall()]), Origin([Send(streamed())])
    if mode == "plain":
        good = Origin([Send(sized())])
    async with origins(bad, good, access=AccessLog(log)) as fleet:
        heard = await ask(fleet, asked)
        assert (heard.status, heard.complete, heard.body) == (200, True, expected)
        assert heard.raw.count(b"HTTP/1.1 ") == 1
        await until(lambda: bool(log.getvalue()))
        assert heard.get("x-cortex-node") == json.loads(log.getvalue())["node"]
        assert (len(bad.requests), len(good.requests)) == (1, 1)
        assert await fleet.metric("cortexd_upstream_retries_total", reason="invalid") == 1
        assert await fleet.metric("cortexd_upstream_requests_total", result="200") == 1


@pytest.mark.parametrize("mode", BODIES)
@pytest.mark.parametrize("name", BROKEN)
async def test_answer_that_is_broken_in_its_first_read_is_a_502_without_another_replica(
    name: str, mode: str
) -> None:
    log = io.StringIO()
    script: Script = [Send(BROKEN[name]), Stall()]
    async with staged(script, GOOD, access=AccessLog(log)) as stage, stage.client() as client:
        heard = await client.ask(post(BODIES[mode][0]))
        assert is_refusal(heard)
        assert heard.get("content-type") == "application/json"
        await until(lambda: bool(log.getvalue()))
        line = json.loads(log.getvalue())
        assert (line["status"], line["code"]) == (502, "upstream_failed")
        # The connection goes on, and nothing of the broken answer is left on it.
        assert (await client.ask(post(ASKED))).body == ANSWER


async def test_error_that_breaks_off_while_it_is_read_leaves_nothing_behind() -> None:
    """Short errors are read whole before any of them is passed on."""
    error = sized(b'{"error": {"message": "no"}}', status="HTTP/1.1 400 No")
    async with staged([Send(error[:-5]), Close()], GOOD) as stage, stage.client() as client:
        heard = await client.ask(post(ASKED))
        assert is_refusal(heard)
        assert (await client.ask(post(ASKED))).body == ANSWER
