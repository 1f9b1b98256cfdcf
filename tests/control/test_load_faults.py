"""Loads that go wrong in every way there is: waiters always end, one load is asked for, and nothing
of it is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.gateway import Loading
from cortexd.config.units import Duration
from cortexd.control import coldload, supervision
from tests.control.cold import SHORT, asking, codes, fleet_with, held, is_empty, waiting
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet
from tests.waiting import GUARD, until

LoadAnswer = Callable[[dict[str, Any]], Awaitable[web.Response]]


@pytest.fixture(autouse=True)
def deadlines_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldload, "TICK", 0.02)
    monkeypatch.setattr(supervision, "RESTART_GRACE", 0.1)


@pytest.mark.parametrize("status", [400, 401, 403, 409, 429, 500, 502, 503, 507])
async def test_any_failure_status_fails_the_load_with_the_nodes_words(status: int) -> None:
    neuron = held()

    async def fail(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        return web.json_response({"error": "no disk"}, status=status)

    neuron.load_answer = fail
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        neuron.release.set()
        answers = await asyncio.gather(*requests)
        assert codes(answers) == {"cold_load_failed": 5}
        if status != 401:  # which has words of its own
            assert all(b"no disk" in answer.body for answer in answers)
        assert all(1 <= int(answer.headers["Retry-After"]) <= 15 for answer in answers)
        assert len(fleet.loads("a")) == 1
        assert await fleet.metric("cortexd_loads_total", model="m", result="failed") == 1
        await is_empty(fleet)


async def lost(body: dict[str, Any]) -> web.Response:
    raise ConnectionResetError


async def garbage(body: dict[str, Any]) -> web.Response:
    return web.Response(body=b"\x00<html>")


async def no_status(body: dict[str, Any]) -> web.Response:
    return web.json_response({"ok": True})


@pytest.mark.parametrize("answer", [lost, garbage, no_status])
async def test_a_load_without_a_proper_answer_has_failed(answer: LoadAnswer) -> None:
    neuron = held()

    async def late(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        return await answer(body)

    neuron.load_answer = late
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"cold_load_failed": 5}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


@pytest.mark.parametrize("status", [400, 409, 500])
async def test_already_loaded_is_a_success_with_any_status(status: int) -> None:
    neuron = held()

    async def raced(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        neuron.models["m"] = "loaded"
        return web.json_response({"error": {"message": "m is already loaded"}}, status=status)

    neuron.load_answer = raced
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 5}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_a_load_that_hangs_ends_every_wait_at_the_bound() -> None:
    neuron = held()
    async with fleet_with(SHORT, a=neuron) as fleet:
        answers = await asyncio.gather(*asking(fleet, 5))
        assert codes(answers) == {"model_loading": 5}
        assert {answer.headers["Retry-After"] for answer in answers} == {"10"}
        assert {answer.status for answer in answers} == {503}
        # Not a failure; the reservation stays until the node settles it, the entry does not.
        assert not fleet.gateway.registry.ledger.failures
        assert fleet.gateway.registry.ledger.loading == {"m": "a"}
        assert len(fleet.gateway.table) == 0
        assert await fleet.metric("cortexd_load_waiting", model="m") == 0
        assert await fleet.metric("cortexd_loads_total", model="m", result="timeout") == 1
        assert len(fleet.loads("a")) == 1
        neuron.release.set()
        await is_empty(fleet)


async def test_a_timeout_tries_no_second_candidate() -> None:
    async with fleet_with(SHORT, a=held(), b=FakeNeuron()) as fleet:
        assert codes(await asyncio.gather(*asking(fleet, 3))) == {"model_loading": 3}
        assert codes(await asyncio.gather(*asking(fleet, 3))) == {"model_loading": 3}
        assert len(fleet.loads("a")) == 1
        assert not fleet.loads("b")


async def test_a_success_after_our_deadline_serves_who_waits_then() -> None:
    neuron = held()
    async with fleet_with(Loading(timeout=Duration(1.0)), a=neuron) as fleet:
        assert codes(await asyncio.gather(*asking(fleet, 3))) == {"model_loading": 3}
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 3}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_a_failure_after_our_deadline_is_told_to_who_waits_then() -> None:
    neuron = held()

    async def fail(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        return web.json_response({"error": "no disk"}, status=500)

    neuron.load_answer = fail
    async with fleet_with(Loading(timeout=Duration(1.0)), a=neuron) as fleet:
        assert codes(await asyncio.gather(*asking(fleet, 3))) == {"model_loading": 3}
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"cold_load_failed": 3}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


@pytest.mark.parametrize("is_listed", [False, True])
async def test_loaded_and_yet_absent_is_decided_again_once_and_then_refused(
    is_listed: bool,
) -> None:
    neuron = held()

    async def claim(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        if is_listed:
            neuron.models["m"] = "loaded"
        return web.json_response({"status": "loaded"})

    neuron.load_answer = claim
    neuron.endpoint_answer = lambda _: web.json_response({"error": "unknown model"}, status=404)
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        neuron.release.set()
        answers = await asyncio.gather(*requests)
        assert {answer.status for answer in answers} <= {502, 503}
        assert set(codes(answers)) <= {"endpoint_resolve_failed", "model_loading"}
        assert len(fleet.loads("a")) <= 2
        await is_empty(fleet)


async def test_a_node_that_goes_down_in_mid_load_hands_the_waiters_on() -> None:
    """It takes no connection and answers no poll; the load's own connection hangs."""
    dying = held()
    async with fleet_with(Loading(timeout=Duration(10)), a=dying, b=FakeNeuron()) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        dying.unreachable = True
        await until(lambda: not fleet.gateway.registry.snapshot.nodes["a"].healthy)
        dying.release.set()
        answers = await asyncio.gather(*requests)
        # What it loaded is of no use while it is down; it is loaded where it can be.
        assert codes(answers) == {"200": 5}
        assert {answer.headers["x-cortex-node"] for answer in answers} == {"b"}
        await is_empty(fleet)


@pytest.mark.parametrize("is_noted", [False, True])
async def test_a_restart_in_mid_load_fails_it_and_the_next_candidate_serves(
    is_noted: bool,
) -> None:
    restarting, other = held(), FakeNeuron()
    restarting.started -= 1000

    async def note(body: dict[str, Any]) -> web.Response:
        restarting.models["m"] = "loading"
        return web.json_response({"status": "loading"})

    if is_noted:
        restarting.load_answer = note
    async with fleet_with(a=restarting, b=other) as fleet:
        requests = asking(fleet, 5)
        await waiting(fleet, 5)
        await until(lambda: bool(fleet.loads("a")))
        restarting.started = time.monotonic()
        restarting.models = {}
        answers = await asyncio.gather(*requests)
        assert codes(answers) == {"200": 5}
        assert {answer.headers["x-cortex-node"] for answer in answers} == {"b"}
        assert (len(fleet.loads("a")), len(fleet.loads("b"))) == (1, 1)
        assert ("a", "m") in fleet.gateway.registry.ledger.failures
        await is_empty(fleet)


async def test_a_restart_alone_says_so() -> None:
    neuron = held()
    neuron.started -= 1000
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        neuron.started = time.monotonic()
        answers = await asyncio.gather(*requests)
        assert codes(answers) == {"cold_load_failed": 3}
        assert all(b"restarted" in answer.body for answer in answers)
        await is_empty(fleet)


@pytest.mark.parametrize("is_listed", [False, True])
async def test_load_goes_on_when_the_nodes_clock_is_set_back(is_listed: bool) -> None:
    neuron = held()
    neuron.started -= 10_000
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        await until(lambda: bool(fleet.loads("a")))
        if is_listed:
            neuron.models["m"] = "loading"
        neuron.started += 5000
        await polled(fleet, 5)
        assert fleet.gateway.registry.snapshot.nodes["a"].epoch == 0
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 3}
        assert len(fleet.loads("a")) == 1
        assert not fleet.gateway.registry.ledger.failures
        await is_empty(fleet)


async def test_load_goes_on_when_a_node_that_seems_restarted_still_lists_it() -> None:
    neuron = held()
    neuron.started -= 1000
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        await until(lambda: bool(fleet.loads("a")))
        neuron.models["m"] = "loading"
        neuron.started = time.monotonic()
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].epoch == 1)
        await polled(fleet, 10)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 3}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def test_load_goes_on_when_its_call_is_answered_soon_after_a_restart_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervision, "RESTART_GRACE", GUARD)
    neuron = held()
    neuron.started -= 1000
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 3)
        await waiting(fleet, 3)
        neuron.started = time.monotonic()
        await until(lambda: fleet.gateway.registry.snapshot.nodes["a"].epoch == 1)
        await polled(fleet, 5)
        neuron.release.set()
        assert codes(await asyncio.gather(*requests)) == {"200": 3}
        assert len(fleet.loads("a")) == 1
        await is_empty(fleet)


async def polled(fleet: Fleet, count: int) -> None:
    """Wait for so many more answers of the node a."""
    neuron = fleet.neurons["a"]
    so_far = len(neuron.called("GET", "/health"))
    await until(lambda: len(neuron.called("GET", "/health")) >= so_far + count)


# The node only takes note.


def status_at(fleet: Fleet, node: str) -> str | None:
    info = fleet.gateway.registry.snapshot.nodes[node].models.get("m")
    return info and info.status


@pytest.mark.parametrize("end", ["loaded", "failed", "gone"])
async def test_a_neuron_that_only_takes_note_ends_every_wait(end: str) -> None:
    neuron = FakeNeuron()

    async def note(body: dict[str, Any]) -> web.Response:
        neuron.models["m"] = "loading"
        return web.json_response({"status": "loading"})

    neuron.load_answer = note
    async with fleet_with(a=neuron) as fleet:
        requests = asking(fleet, 20)
        await waiting(fleet, 20)
        await until(lambda: status_at(fleet, "a") == "loading")
        if end == "gone":
            del neuron.models["m"]
        else:
            neuron.models["m"] = {"id": "m", "status": end, "error": "no disk"}
        expected = "200" if end == "loaded" else "cold_load_failed"
        answers = await asyncio.gather(*requests)
        assert codes(answers) == {expected: 20}
        assert len(fleet.loads("a")) == 1
        if end == "failed":
            assert all(b"no disk" in answer.body for answer in answers)
        await until(lambda: not fleet.gateway.registry.ledger.loading)
        await is_empty(fleet)


async def test_a_neuron_that_takes_note_for_ever_ends_every_wait_at_the_bound() -> None:
    neuron = FakeNeuron()

    async def note(body: dict[str, Any]) -> web.Response:
        neuron.models["m"] = "loading"
        return web.json_response({"status": "loading"})

    neuron.load_answer = note
    async with fleet_with(SHORT, a=neuron) as fleet:
        assert codes(await asyncio.gather(*asking(fleet, 5))) == {"model_loading": 5}
        assert len(fleet.loads("a")) == 1
        neuron.models["m"] = "loaded"
        await is_empty(fleet)
        assert (await fleet.ask()).headers["x-cortex-route"] == "loaded"


# Others have begun it.


@pytest.mark.parametrize("end", ["gone", "never", "restart"])
async def test_a_load_of_others_that_fails_ends_every_wait(end: str) -> None:
    neuron = FakeNeuron({"m": "loading"})
    neuron.started -= 1000
    async with fleet_with(SHORT if end == "never" else None, a=neuron) as fleet:
        requests = asking(fleet, 5)
        if end == "never":
            assert codes(await asyncio.gather(*requests)) == {"model_loading": 5}
            assert not fleet.loads("a")
            neuron.models = {}
        else:
            await waiting(fleet, 5)
            if end == "restart":
                neuron.started = time.monotonic()
            neuron.models = {}
            # Ours then.
            assert codes(await asyncio.gather(*requests)) == {"200": 5}
            assert len(fleet.loads("a")) == 1
        await is_empty(fleet)
