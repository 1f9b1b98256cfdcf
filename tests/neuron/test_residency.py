"""Who may load, use and unload a model, with an engine that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cortexd.config.neuron import LocalModel
from cortexd.errors import Refusal
from cortexd.neuron.devices import Devices
from cortexd.neuron.harness import EngineError, Gpu
from cortexd.neuron.residency import Residency
from cortexd.wire.neuron import LoadRequest, Model, ModelLoad
from tests.neuron.engines import FakeHarness, local
from tests.waiting import GUARD, until


@asynccontextmanager
async def residency(
    *models: LocalModel,
    harness: FakeHarness,
    memory_mb: int = 1000,
    directories: tuple[Path, ...] = (),
    load_timeout: float = GUARD,
    drain: float = GUARD,
) -> AsyncIterator[Residency]:
    devices = Devices({"fake": harness}, memory_mb)
    await devices.survey()
    residency = Residency(
        models,
        {"fake": harness},
        devices,
        directories=directories,
        load_timeout=load_timeout,
        drain=drain,
    )
    try:
        yield residency
    finally:
        harness.release.set()
        harness.stoppable.set()
        await residency.close()
        await devices.close()


def status(residency: Residency, model_id: str = "m") -> str:
    return {model.id: model.status for model in residency.models()}.get(model_id, "gone")


def described(residency: Residency, model_id: str = "m") -> Model:
    return next(model for model in residency.models() if model.id == model_id)


def busy(residency: Residency, model_id: str = "m") -> ModelLoad:
    return next(load for load in residency.loads() if load.id == model_id)


@asynccontextmanager
async def request(residency: Residency, model_id: str = "m") -> AsyncIterator[asyncio.Event]:
    """A request that is held or served until the block ends; the event: its engine is known."""
    served, ends = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with residency.serving(model_id):
            served.set()
            await ends.wait()

    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as group:
        group.create_task(live())
        try:
            yield served
        finally:
            ends.set()


async def test_a_configured_model_is_unloaded_from_the_start_and_after_an_unload() -> None:
    harness = FakeHarness()
    async with residency(local("m", context=2048), harness=harness) as here:
        assert status(here) == "unloaded"
        assert described(here).limit.context == 2048
        await here.load(LoadRequest("m"))
        assert status(here) == "loaded"
        await here.unload("m")
        assert status(here) == "unloaded"
        assert harness.events == ["start m", "stop m"]


async def test_a_model_loaded_from_a_file_disappears_when_it_is_unloaded(tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/m.gguf").touch()
    harness = FakeHarness()
    async with residency(harness=harness, directories=(tmp_path,)) as here:
        assert here.models() == []
        await here.load(LoadRequest("hf:org/m"))
        assert status(here, "org/m") == "loaded"
        assert here.knows("org/m")
        assert here.knows("hf:org/m")
        await here.unload("hf:org/m")
        assert here.models() == []
        assert not here.knows("org/m")


async def test_concurrent_loads_of_one_model_share_one_engine(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    harness = FakeHarness()
    async with residency(harness=harness, directories=(tmp_path,)) as here:
        await asyncio.gather(*(here.load(LoadRequest("m")) for _ in range(50)))
        await here.load(LoadRequest("m"))
        assert harness.events == ["start m"]


async def test_whoever_stops_waiting_does_not_cancel_the_load() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here:
        caller = asyncio.ensure_future(here.load(LoadRequest("m")))
        await until(lambda: harness.events == ["start m"])
        caller.cancel()
        await asyncio.wait({caller})
        assert status(here) == "loading"
        harness.release.set()
        await until(lambda: status(here) == "loaded")


async def test_a_request_for_an_unloaded_model_reloads_it_and_is_held_meanwhile() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here:
        async with request(here) as first, request(here) as second:
            await until(lambda: harness.events == ["start m"])
            assert status(here) == "reloading"
            assert (busy(here).in_flight, busy(here).queue_depth) == (0, 2)
            assert not first.is_set()
            harness.release.set()
            await first.wait()
            await second.wait()
            assert status(here) == "loaded"
            # One slot: the engine queues the second.
            assert (busy(here).in_flight, busy(here).queue_depth) == (1, 1)
        assert (busy(here).in_flight, busy(here).queue_depth) == (0, 0)
        assert harness.events == ["start m"]


async def test_a_load_joins_a_reload() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here, request(here):
        async with asyncio.TaskGroup() as group:
            group.create_task(here.load(LoadRequest("m")))
            await until(lambda: harness.events == ["start m"])
            harness.release.set()
        assert status(here) == "loaded"
        assert harness.events == ["start m"]


async def test_an_unload_cancels_the_load_and_tells_its_waiters() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here:
        waiters = [here.load(LoadRequest("m")) for _ in range(3)]
        told = asyncio.gather(*waiters, return_exceptions=True)
        await until(lambda: harness.events == ["start m"])
        await here.unload("m", if_idle=True)
        codes = [refusal.kind.code for refusal in await told if isinstance(refusal, Refusal)]
        assert codes == ["load_cancelled"] * 3
        assert status(here) == "unloaded"
        assert harness.events == ["start m", "stop m"]


async def test_an_unload_in_the_very_turn_of_the_load_leaves_nobody_waiting() -> None:
    harness = FakeHarness()
    async with residency(local("m"), harness=harness) as here:
        results = await asyncio.gather(
            here.load(LoadRequest("m")), here.unload("m"), return_exceptions=True
        )
        assert [getattr(each, "kind", each) for each in results][1] is None
        assert status(here) in {"loaded", "unloaded"}
        await here.load(LoadRequest("m"))
        assert status(here) == "loaded"


async def test_if_idle_refuses_while_a_request_runs_or_waits() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here:
        async with request(here) as served:
            await until(lambda: status(here) == "reloading")
            with pytest.raises(Refusal) as waiting:
                await here.unload("m", if_idle=True)
            harness.release.set()
            await served.wait()
            with pytest.raises(Refusal) as running:
                await here.unload("m", if_idle=True)
        assert {waiting.value.kind.code, running.value.kind.code} == {"busy"}
        assert waiting.value.kind.status == 409
        await here.unload("m", if_idle=True)
        assert status(here) == "unloaded"


async def test_an_unload_lets_running_requests_end_and_takes_no_new_ones() -> None:
    harness = FakeHarness()
    async with residency(local("m"), harness=harness) as here, asyncio.TaskGroup() as group:
        async with request(here) as served:
            await served.wait()
            unloading = group.create_task(here.unload("m"))
            await until(lambda: status(here) == "unloaded")
            assert harness.events == ["start m"]
            # Who comes now waits for a new engine.
            async with request(here) as next_served:
                await next_served.wait()
                assert harness.events == ["start m", "start m"]
        await unloading
        assert harness.events == ["start m", "start m", "stop m"]


async def test_an_unload_does_not_wait_for_ever_for_a_request() -> None:
    harness = FakeHarness()
    async with (
        residency(local("m"), harness=harness, drain=0.01) as here,
        request(here) as served,
    ):
        await served.wait()
        await here.unload("m")
        assert harness.events == ["start m", "stop m"]


async def test_what_does_not_fit_is_refused_before_the_attempt_with_the_numbers(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.gguf").touch()
    harness = FakeHarness()
    harness.needed_mb = harness.resident_mb = 600
    async with residency(local("a"), harness=harness, directories=(tmp_path,)) as here:
        await here.load(LoadRequest("a"))
        with pytest.raises(Refusal, match="needs 600 MiB; 400 of 1000 MiB are free") as refused:
            await here.load(LoadRequest("b"))
        assert (refused.value.kind.status, refused.value.kind.code) == (507, "insufficient_vram")
        assert harness.events == ["start a"]
        assert status(here, "b") == "gone"


async def test_model_larger_than_the_host_is_422() -> None:
    harness = FakeHarness()
    harness.needed_mb = 1001
    async with residency(local("a"), harness=harness) as here:
        with pytest.raises(Refusal, match="needs 1001 MiB, there are 1000 MiB") as refused:
            await here.load(LoadRequest("a"))
        assert (refused.value.kind.status, refused.value.kind.code) == (422, "model_too_large")
        assert harness.events == []


async def test_two_loads_never_count_on_the_same_memory() -> None:
    harness = FakeHarness()
    harness.needed_mb, harness.resident_mb = 600, 0
    harness.release.clear()
    async with residency(local("a"), local("b"), harness=harness) as here:
        both = [here.load(LoadRequest(name)) for name in "ab"]
        results = asyncio.gather(*both, return_exceptions=True)
        await until(lambda: {status(here, "a"), status(here, "b")} == {"loading", "unloaded"})
        await until(lambda: len(harness.events) == 1)
        harness.release.set()
        refused = [each for each in await results if each is not None]
        assert [each.kind.code for each in refused] == ["insufficient_vram"]
        assert len(harness.events) == 1


async def test_memory_that_an_unload_is_giving_back_is_waited_for() -> None:
    harness = FakeHarness()
    harness.needed_mb = harness.resident_mb = 600
    async with residency(local("a"), local("b"), harness=harness) as here:
        await here.load(LoadRequest("a"))
        harness.stoppable.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(here.unload("a"))
            await until(lambda: status(here, "a") == "unloaded")
            group.create_task(here.load(LoadRequest("b")))
            await until(lambda: status(here, "b") == "loading")
            assert here.used_mb == 600
            harness.stoppable.set()
        assert harness.events == ["start a", "stop a", "start b"]


async def test_a_failed_load_says_why_and_the_next_request_tries_again() -> None:
    harness = FakeHarness()
    harness.broken = "no magic in this file"
    async with residency(local("m"), harness=harness) as here:
        with pytest.raises(Refusal, match="no magic in this file") as refused:
            await here.load(LoadRequest("m"))
        assert (refused.value.kind.status, refused.value.kind.code) == (500, "load_failed")
        assert status(here) == "failed"
        assert "no magic in this file" in (described(here).error or "")
        harness.broken = ""
        async with request(here) as served:
            await served.wait()
        assert status(here) == "loaded"
        assert described(here).error is None


async def test_an_engine_that_never_answers_is_given_up() -> None:
    harness = FakeHarness()
    harness.release.clear()
    async with residency(local("m"), harness=harness, load_timeout=0.01) as here:
        with pytest.raises(Refusal, match="did not load within"):
            await here.load(LoadRequest("m"))
        await until(lambda: harness.events == ["start m", "stop m"])
        assert status(here) == "failed"


async def test_a_configured_model_whose_engine_dies_comes_back_with_the_next_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = FakeHarness()
    async with residency(local("m"), harness=harness) as here:
        await here.load(LoadRequest("m"))
        harness.engines[0].die(-9)
        await until(lambda: status(here) == "unloaded")
        assert "the engine of m ended by itself with code -9" in caplog.text
        async with request(here) as served:
            await served.wait()
        assert status(here) == "loaded"
        assert len(harness.engines) == 2


async def test_another_model_whose_engine_dies_is_failed_and_comes_back_with_a_load(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.gguf").touch()
    harness = FakeHarness()
    async with residency(harness=harness, directories=(tmp_path,)) as here:
        await here.load(LoadRequest("m"))
        harness.engines[0].die(3)
        await until(lambda: status(here) == "failed")
        assert "code 3" in (described(here).error or "")
        await here.load(LoadRequest("m"))
        assert status(here) == "loaded"


async def test_a_load_under_way_tells_the_share_of_the_memory_it_has_taken() -> None:
    harness = FakeHarness()
    harness.needed_mb, harness.resident_mb = 200, 50
    harness.release.clear()
    async with residency(local("m"), harness=harness) as here, request(here):
        await until(lambda: harness.events == ["start m"])
        progress = described(here).progress
        assert progress is not None
        assert (progress.stage, progress.fraction) == ("weights", 0.25)
        # What it was let in for is taken at once.
        assert here.used_mb == 200
        harness.release.set()
        await until(lambda: status(here) == "loaded")
        assert described(here).progress is None
        assert (described(here).vram_used_mb, here.used_mb) == (50, 50)


async def test_on_gpus_the_drivers_figures_decide_and_the_chosen_device_is_used() -> None:
    harness = FakeHarness(gpus=[Gpu(0, "A", 800, 50), Gpu(1, "B", 800, 800)])
    harness.needed_mb = 600
    async with residency(local("m"), harness=harness, memory_mb=10_000) as here:
        with pytest.raises(Refusal, match="50 of 1600 MiB are free"):
            await here.load(LoadRequest("m", devices=[0]))
        await here.load(LoadRequest("m", devices=[1]))
        assert harness.engines[0].launch.devices == (1,)
        assert described(here).devices == [1]
        assert described(here).vram_used_mb is None


async def test_what_can_never_load_is_refused_at_once() -> None:
    harness = FakeHarness()
    async with residency(local("m"), harness=harness) as here:
        refusals = [
            (LoadRequest("m", harness="vllm"), (422, "unknown_harness")),
            (LoadRequest("m", devices=[7]), (422, "unknown_device")),
            (LoadRequest("other"), (404, "model_not_found")),
        ]
        for wanted, expected in refusals:
            with pytest.raises(Refusal) as refused:
                await here.load(wanted)
            assert (refused.value.kind.status, refused.value.kind.code) == expected
        with pytest.raises(Refusal, match="not loaded here"):
            await here.unload("other")
        assert (harness.events, [model.id for model in here.models()]) == ([], ["m"])


async def test_a_host_that_can_run_no_engine_says_so() -> None:
    harness = FakeHarness()
    harness.gpus_answer = EngineError("no library")
    async with residency(local("m"), harness=harness) as here:
        with pytest.raises(Refusal, match="no library") as refused:
            await here.load(LoadRequest("m"))
        assert (refused.value.kind.status, refused.value.kind.code) == (503, "cuda_unavailable")
        assert status(here) == "unloaded"


async def test_closing_ends_every_engine_and_every_load() -> None:
    harness = FakeHarness()
    async with residency(local("a"), local("b"), harness=harness) as here:
        await here.load(LoadRequest("a"))
        harness.release.clear()
        load = asyncio.gather(here.load(LoadRequest("b")), return_exceptions=True)
        await until(lambda: "start b" in harness.events)
        await here.close()
        assert sorted(harness.events) == ["start a", "start b", "stop a", "stop b"]
        assert isinstance((await load)[0], Refusal)
        with pytest.raises(Refusal, match="shutting down"):
            await here.load(LoadRequest("a"))
