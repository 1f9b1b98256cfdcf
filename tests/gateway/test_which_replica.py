"""Which of several replicas serves, seen from outside: a whole gateway and real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from aiohttp import web

from cortexd.config.gateway import Config, Polling, Routing
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.functional.faults import Close, Origin, Reset, Script, Send, refusing
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.proxy.stage import SSE_HEAD, chunks, origins, replicas, sized
from tests.proxy.stage import ask as ask_raw
from tests.waiting import until

# No poll after the first, unless it is asked for.
SELDOM = Polling(Duration(3600), Duration(2), unhealthy_after=2)
GOOD = [Send(sized())]
BAD_GATEWAY = [Send(sized(b"{}", status="HTTP/1.1 502 Bad Gateway"))]


def four() -> dict[str, FakeNeuron]:
    return {name: FakeNeuron({"m": "loaded"}) for name in "abcd"}


def conversation(name: str, turns: int) -> list[dict[str, str]]:
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"I am {name}"}]
    for turn in range(turns):
        said += [
            {"role": "assistant", "content": f"answer {turn}"},
            {"role": "user", "content": f"question {turn}"},
        ]
    return said


async def nodes_of(fleet: Fleet, *requests: dict[str, Any]) -> list[str]:
    return [(await fleet.ask(**fields)).headers["x-cortex-node"] for fields in requests]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_turns_of_a_conversation_go_to_one_replica(path: str) -> None:
    async with running_fleet(**four(), config=Config(polling=SELDOM)) as fleet:
        homes = []
        for name in range(12):
            asked = [{"messages": conversation(str(name), n), "path": path} for n in range(6)]
            homes.append(set(await nodes_of(fleet, *asked)))
        assert all(len(home) == 1 for home in homes), homes
        assert len(set.union(*homes)) > 1, "another conversation, another home"


async def test_a_session_stays_where_it_is_whatever_it_says() -> None:
    async with running_fleet(**four(), config=Config(polling=SELDOM)) as fleet:
        asked = [
            {"messages": conversation(str(n), 0), "headers": {"x-session-id": "mine"}}
            for n in range(12)
        ]
        assert len(set(await nodes_of(fleet, *asked))) == 1


async def test_without_affinity_they_take_turns() -> None:
    config = Config(polling=SELDOM, routing=Routing(affinity="none"))
    async with running_fleet(**four(), config=config) as fleet:
        shares = Counter(await nodes_of(fleet, *[{"prompt_cache_key": "one"}] * 40))
        assert sorted(shares) == ["a", "b", "c", "d"]
        assert all(8 <= count <= 12 for count in shares.values()), shares


@pytest.mark.parametrize("affinity", ["prefix", "none"])
async def test_a_burst_between_two_polls_is_spread(affinity: Any) -> None:
    neurons, done = four(), asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await done.wait()
        return web.json_response({})

    for neuron in neurons.values():
        neuron.infer = infer
    config = Config(polling=SELDOM, routing=Routing(affinity=affinity))
    async with running_fleet(**neurons, config=config) as fleet:
        asking = [
            asyncio.create_task(fleet.ask(messages=conversation(str(n), 0))) for n in range(80)
        ]
        await until(lambda: sum(len(neuron.inference) for neuron in neurons.values()) == 80)
        done.set()
        shares = Counter(
            [answer.headers["x-cortex-node"] for answer in await asyncio.gather(*asking)]
        )
        assert all(14 <= shares[name] <= 27 for name in neurons), shares


async def test_what_others_send_to_a_node_is_seen_in_its_report() -> None:
    neurons = {name: FakeNeuron({"m": "loaded"}) for name in "ab"}
    neurons["a"].health = {"models": [{"id": "m", "in_flight": 3, "queue_depth": 4}]}
    async with running_fleet(**neurons, config=Config(polling=SELDOM)) as fleet:
        asked = [{"messages": conversation(str(n), 0)} for n in range(12)]
        assert set(await nodes_of(fleet, *asked)) == {"b"}


async def test_a_node_of_more_weight_takes_more() -> None:
    neurons = {name: FakeNeuron({"m": "loaded"}) for name in "ab"}
    config = Config(polling=SELDOM, routing=Routing(affinity="none"))
    async with running_fleet(**neurons, config=config, weights={"a": 3}) as fleet:
        shares = Counter(await nodes_of(fleet, *[{}] * 40))
        assert 28 <= shares["a"] <= 32


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_a_replica_that_resets_is_avoided_while_another_is_left(end: Close | Reset) -> None:
    bad, good = Origin([end]), Origin(GOOD)
    async with origins(bad, good, config=Config(polling=SELDOM)) as fleet:
        for number in range(20):
            heard = await ask_raw(fleet, msgspec.json.encode({"model": "m", "prompt": str(number)}))
            assert heard.status == 200
        assert len(bad.requests) <= 1


async def test_a_replica_that_refuses_is_avoided_and_its_node_polled_at_once() -> None:
    good = Origin(GOOD)
    with refusing() as nowhere:
        async with (
            good.running(),
            replicas(nowhere, good.url, config=Config(polling=SELDOM)) as fleet,
        ):
            for number in range(20):
                body = msgspec.json.encode({"model": "m", "prompt": str(number)})
                assert (await ask_raw(fleet, body)).status == 200
            assert await fleet.metric("cortexd_upstream_requests_total", result="refused") <= 1
            [(suspect, _)] = fleet.gateway.registry.ledger.faults
            await until(lambda: len(fleet.neurons[suspect].called("GET", "/models")) == 2)
            assert fleet.gateway.registry.snapshot.healthy == 2
            (other,) = {"a", "b"} - {suspect}
            assert len(fleet.neurons[other].called("GET", "/models")) == 1


async def test_a_suspect_is_used_when_it_is_the_last_and_trusted_after_its_first_answer() -> None:
    turn: list[Script] = [[Reset()], [Reset()]]
    origin = Origin(answer=lambda _: turn.pop(0) if turn else GOOD)
    async with origins(origin, config=Config(polling=FAST)) as fleet:
        faults = fleet.gateway.registry.ledger.faults
        assert (await ask_raw(fleet)).status == 502
        assert ("a", "m") in faults
        assert (await ask_raw(fleet)).status == 200
        assert not faults
        assert ("a", "m") in fleet.gateway.registry.ledger.served


async def test_a_replica_that_answers_errors_at_once_does_not_look_idle() -> None:
    bad, good = Origin(BAD_GATEWAY), Origin(GOOD)
    async with origins(bad, good, config=Config(polling=SELDOM)) as fleet:
        statuses: Counter[int] = Counter()
        for number in range(20):
            body = msgspec.json.encode({"model": "m", "prompt": str(number)})
            statuses[(await ask_raw(fleet, body)).status] += 1
        assert statuses[502] <= 1


async def test_a_stream_that_dies_makes_its_replica_suspect() -> None:
    async with origins(
        Origin([Send(SSE_HEAD + chunks(b"data: 1\n\n")), Close()]), config=Config(polling=SELDOM)
    ) as fleet:
        assert not (await ask_raw(fleet)).complete
        faults = fleet.gateway.registry.ledger.faults
        await until(lambda: ("a", "m") in faults)
        assert faults["a", "m"].suspect_until > 0


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many", "503 Unavailable"])
async def test_a_callers_mistake_and_back_pressure_are_no_faults(status: str) -> None:
    nodes = [Origin([Send(sized(b"{}", status=f"HTTP/1.1 {status}"))]) for _ in range(2)]
    async with origins(*nodes, config=Config(polling=SELDOM)) as fleet:
        for _ in range(3):
            assert (await ask_raw(fleet)).status == int(status[:3])
        assert not fleet.gateway.registry.ledger.faults


async def test_a_client_that_leaves_is_nobodys_fault() -> None:
    neuron, begun = FakeNeuron({"m": "loaded"}), asyncio.Event()

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        return web.Response()

    neuron.infer = infer
    async with running_fleet(a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await begun.wait()
        asking.cancel()
        registry = fleet.gateway.registry
        await until(lambda: not registry.ledger.in_flight)
        assert not registry.ledger.faults


async def test_an_endpoint_that_has_moved_is_no_fault() -> None:
    neuron = FakeNeuron({"m": "loaded"})
    with refusing() as nowhere:
        said = [nowhere]
        neuron.endpoint_answer = lambda _: web.json_response(
            {"url": said.pop() if said else neuron.url}
        )
        async with running_fleet(a=neuron, config=Config(polling=SELDOM)) as fleet:
            assert (await fleet.ask()).status == 200
            assert not fleet.gateway.registry.ledger.faults
