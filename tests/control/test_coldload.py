"""Loads are single flight: transcripts of a whole gateway before fake neurons."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading
from cortexd.config.units import Duration
from cortexd.control import outcomes
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Fleet, running_fleet
from tests.waiting import GUARD, until


def assert_idle(fleet: Fleet) -> None:
    assert len(fleet.gateway.table) == 0
    assert not fleet.gateway.registry.ledger.loading
    assert not fleet.gateway.registry.ledger.in_flight


async def waiting(fleet: Fleet, count: int) -> None:
    await until(lambda: sum(fleet.gateway.table.waiting().values()) == count)


async def test_simultaneous_requests_for_a_cold_model_share_one_load() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron, b=FakeNeuron()) as fleet:
        asking = [asyncio.create_task(fleet.ask()) for _ in range(50)]
        await waiting(fleet, 50)
        assert await fleet.metric("cortexd_load_waiting", model="m") == 50
        neuron.release.set()
        answers = await asyncio.gather(*asking)
        assert [answer.status for answer in answers] == [200] * 50
        assert {answer.headers["x-cortex-route"] for answer in answers} == {"cold"}
        assert len(fleet.loads("a")) == 1
        assert not fleet.loads("b")
        assert await fleet.metric("cortexd_cold_starts_total", model="m", kind="cold") == 50
        assert await fleet.metric("cortexd_loads_total", model="m") == 1
        assert_idle(fleet)


async def test_a_client_that_leaves_does_not_cancel_the_load_and_a_retry_joins_it() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        leaving = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        leaving.cancel()
        await waiting(fleet, 0)
        staying = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        neuron.release.set()
        assert (await staying).status == 200
        assert len(fleet.loads("a")) == 1
        assert_idle(fleet)


async def test_a_failed_load_goes_on_to_the_next_candidate_once() -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no"}, status=500)

    first, second, third = FakeNeuron(), FakeNeuron(), FakeNeuron()
    first.load_answer = second.load_answer = fail
    async with running_fleet(Profile("m"), a=first, b=second, c=third) as fleet:
        answer = await fleet.ask()
        assert answer.status == 502
        assert answer.headers["x-cortex-code"] == "cold_load_failed"
        assert (len(fleet.loads("a")), len(fleet.loads("b"))) == (1, 1)
        assert not fleet.loads("c")
        # The next request finds the third.
        assert (await fleet.ask()).headers["x-cortex-node"] == "c"
        assert_idle(fleet)


async def test_a_second_candidate_serves_those_who_waited_for_the_first() -> None:
    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no"}, status=500)

    first = FakeNeuron()
    first.load_answer = fail
    async with running_fleet(Profile("m"), a=first, b=FakeNeuron()) as fleet:
        answers = await asyncio.gather(*(fleet.ask() for _ in range(10)))
        assert {(answer.status, answer.headers["x-cortex-node"]) for answer in answers} == {
            (200, "b")
        }
        assert (len(fleet.loads("a")), len(fleet.loads("b"))) == (1, 1)


async def test_the_back_off_doubles_and_a_success_clears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcomes, "FIRST_BACKOFF", 0.01)
    neuron = FakeNeuron()
    succeed = neuron.load_answer

    async def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no"}, status=500)

    neuron.load_answer = fail
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        failures = fleet.gateway.registry.ledger.failures

        async def fails() -> bool:
            return (await fleet.ask()).status == 502

        assert await fails()
        assert failures["a", "m"].count == 1
        async with asyncio.timeout(GUARD):
            while failures["a", "m"].count < 3:
                assert await fails()
        neuron.load_answer = succeed
        async with asyncio.timeout(GUARD):
            while await fails():
                pass
        assert not failures
        assert_idle(fleet)


async def test_a_node_that_dies_in_mid_load_fails_it_and_ends_every_wait() -> None:
    neuron = FakeNeuron()

    async def die(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        raise ConnectionResetError

    neuron.load_answer = die
    neuron.release.clear()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = [asyncio.create_task(fleet.ask()) for _ in range(5)]
        await waiting(fleet, 5)
        neuron.release.set()
        for answer in await asyncio.gather(*asking):
            assert answer.headers["x-cortex-code"] == "cold_load_failed"
        assert_idle(fleet)


async def test_already_loaded_is_a_success() -> None:
    neuron = FakeNeuron()

    async def raced(body: dict[str, Any]) -> web.Response:
        neuron.models["m"] = "loaded"
        return web.json_response({"error": "model is already loaded"}, status=400)

    neuron.load_answer = raced
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        assert (await fleet.ask()).status == 200


def note_taker() -> FakeNeuron:
    """A neuron that answers a load before it is done."""
    neuron = FakeNeuron()

    async def note(body: dict[str, Any]) -> web.Response:
        neuron.models["m"] = "loading"
        return web.json_response({"status": "loading"})

    neuron.load_answer = note
    return neuron


async def test_a_neuron_that_only_takes_note_is_watched_until_the_model_is_there() -> None:
    neuron = note_taker()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        await until(
            lambda: fleet.gateway.registry.snapshot.nodes["a"].models["m"].status == "loading"
        )
        neuron.models["m"] = "loaded"
        answer = await asking
        assert (answer.status, answer.headers["x-cortex-route"]) == (200, "cold")
        assert len(fleet.loads("a")) == 1


@pytest.mark.parametrize("end", [{}, {"m": {"id": "m", "status": "failed", "error": "disk full"}}])
async def test_a_load_that_vanishes_after_it_was_noted_has_failed(end: dict[str, Any]) -> None:
    neuron = note_taker()
    async with running_fleet(Profile("m"), a=neuron) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        models = fleet.gateway.registry.snapshot
        await until(lambda: fleet.gateway.registry.snapshot is not models)
        neuron.models = end
        answer = await asking
        assert answer.headers["x-cortex-code"] == "cold_load_failed"
        assert_idle(fleet)


async def test_a_load_that_others_started_is_joined_and_not_repeated() -> None:
    neuron = FakeNeuron({"m": "loading"})
    async with running_fleet(Profile("m"), a=neuron, b=FakeNeuron()) as fleet:
        asking = [asyncio.create_task(fleet.ask()) for _ in range(5)]
        await waiting(fleet, 5)
        neuron.models["m"] = "loaded"
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.headers["x-cortex-node"]) == (200, "a")
            assert answer.headers["x-cortex-route"] == "cold"
        assert not fleet.loads("a")
        assert not fleet.loads("b")
        assert_idle(fleet)


async def test_a_recovery_that_ends_in_time_is_served() -> None:
    neuron = FakeNeuron({"m": "recovering"})
    async with running_fleet(Profile("m"), a=neuron, b=FakeNeuron()) as fleet:
        asking = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        neuron.models["m"] = "loaded"
        assert (await asking).headers["x-cortex-node"] == "a"
        assert not fleet.loads("b")


async def test_a_timeout_is_no_failure_and_the_load_is_found_when_it_is_done() -> None:
    neuron = FakeNeuron()
    neuron.release.clear()
    config = Config(polling=FAST, loading=Loading(timeout=Duration(0.2)))
    async with running_fleet(Profile("m"), a=neuron, config=config) as fleet:
        answer = await fleet.ask()
        assert answer.headers["x-cortex-code"] == "model_loading"
        assert not fleet.gateway.registry.ledger.failures
        # It is the node's now: who asks again waits for it, and no second one is begun.
        assert fleet.gateway.registry.ledger.loading == {"m": "a"}
        again = asyncio.create_task(fleet.ask())
        await waiting(fleet, 1)
        neuron.models["m"] = "loaded"
        assert (await again).status == 200
        assert len(fleet.loads("a")) == 1
        await until(lambda: not fleet.gateway.registry.ledger.loading)
        assert (await fleet.ask()).headers["x-cortex-route"] == "loaded"
        assert_idle(fleet)


async def test_the_profile_is_what_the_node_is_asked_for() -> None:
    profile = Profile("team/m", source="hf", quant="Q4_K_M", min_devices=2, min_device_vram_mb=16)
    gpus = [{"index": index, "vram_total_mb": size} for index, size in enumerate((8, 24, 24))]
    async with running_fleet(profile, a=FakeNeuron(devices=gpus)) as fleet:
        assert (await fleet.ask("team/m")).status == 200
        assert fleet.loads("a") == [
            {
                "model_id": "hf:team/m",
                "harness": "llamacpp",
                "quant": "Q4_K_M",
                "tensor_parallel": 2,
                "devices": [1, 2],
            }
        ]
        # Everywhere else the id is bare.
        assert fleet.neurons["a"].inference[0]["model"] == "team/m"
