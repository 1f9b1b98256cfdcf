"""The parent's side, with the real engine and the real model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from cortexd.config.neuron import LocalModel, Paths
from cortexd.neuron.harness import EngineError, Gpu, Launch
from cortexd.neuron.harnesses.llamacpp import LlamaCpp, LlamaCppEngine
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire import usage
from cortexd.wire.neuron import LoadRequest, UnloadRequest
from tests.neuron.engines import running_neuron, smollm2
from tests.waiting import GUARD, eventually

CHAT = {
    "model": "smol",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Name three colours."}],
}


def small(model_id: str, path: str, context: int = 512) -> LocalModel:
    """One thread: two that spin for each other are slow where cores are shared."""
    return LocalModel(model_id, path, context=context, args={"cpuparams.n_threads": 1})


def launch(path: Path, **settings: object) -> Launch:
    model = LocalModel("m", str(path), **({"context": 256} | settings))  # type: ignore[arg-type]
    return Launch(model, path)


async def failure(harness: LlamaCpp, wanted: Launch) -> str:
    engine = await harness.start(wanted)
    try:
        with pytest.raises(EngineError) as failed:
            await engine.wait_ready()
    finally:
        await engine.stop()
    return str(failed.value)


async def test_a_file_that_is_no_model_is_told_in_the_engines_own_words(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    words = await failure(LlamaCpp(tmp_path / "logs"), launch(tmp_path / "bad.gguf"))
    assert "invalid magic characters: 'not ', expected 'GGUF'" in words
    assert f"(exit code 1; log: {tmp_path}/logs/m.log)" in words
    assert "\n" not in words


async def test_a_setting_that_llama_cpp_does_not_have_is_named(tmp_path: Path) -> None:
    words = await failure(LlamaCpp(tmp_path), launch(smollm2(), args={"n_bath": 1}))
    assert words.startswith("args: llama.cpp has no setting 'n_bath'; 'n_batch'?")


async def test_an_engine_that_is_killed_while_it_loads_says_by_what(tmp_path: Path) -> None:
    engine = await LlamaCpp(tmp_path).start(launch(smollm2()))
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL"):
        await engine.wait_ready()
    assert await engine.wait_exit() == -9
    await engine.stop()


async def test_an_engine_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortexd.neuron.harnesses.llamacpp._STOP_GRACE", 0.01)
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    await process.stdout.readline()
    engine = LlamaCppEngine(process, "key", tmp_path / "m.log")
    await engine.stop()
    assert await engine.wait_exit() == -9


async def test_the_log_of_the_run_before_is_kept(tmp_path: Path) -> None:
    harness = LlamaCpp(tmp_path)
    (tmp_path / "bad.gguf").write_text("not a model")
    for args in ({"n_bath": 1}, {"n_bitch": 1}):
        await failure(harness, launch(tmp_path / "bad.gguf", args=args))
    assert "n_bath" in (tmp_path / "m.log.1").read_text()
    assert "n_bitch" in (tmp_path / "m.log").read_text()


async def test_a_log_that_cannot_be_written_is_a_failed_load(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(EngineError, match=r"its log .* can't be written"):
        await LlamaCpp(tmp_path / "logs").start(launch(smollm2()))


async def test_without_xllamacpp_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('no xllamacpp here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"no xllamacpp here; .* 'cortexd\[llamacpp\]'$"):
        await LlamaCpp(tmp_path).gpus()
    assert "no xllamacpp here" in await failure(LlamaCpp(tmp_path), launch(smollm2()))


def test_an_estimate_is_what_is_configured_or_the_size_of_all_parts(tmp_path: Path) -> None:
    harness = LlamaCpp(tmp_path)
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(bytes(3 << 20))
    first = tmp_path / "m-00001-of-00002.gguf"
    assert harness.estimate_mb(launch(first)) == 6
    assert harness.estimate_mb(launch(first, vram_mb=77)) == 77
    assert harness.estimate_mb(launch(smollm2())) == smollm2().stat().st_size >> 20
    with pytest.raises(EngineError, match=r"none\.gguf: No such file"):
        harness.estimate_mb(launch(tmp_path / "none.gguf"))


def test_capabilities_follow_the_settings(tmp_path: Path) -> None:
    said = [
        LlamaCpp(tmp_path).capabilities(LocalModel("m", "m", args=args))
        for args in ({}, {"embedding": True}, {"embedding": True, "pooling_type": "rank"})
    ]
    assert said == [["text"], ["embedding"], ["rerank"]]


def test_chosen_gpus_become_a_split_over_all_that_there_are(tmp_path: Path) -> None:
    harness = LlamaCpp(tmp_path)
    wanted = Launch(LocalModel("m", "m", context=100, parallel=3), Path("m"), devices=(1,))
    settings = json.loads(harness._order(wanted, "key"))["set"]
    assert "tensor_split" not in settings
    assert settings["n_ctx"] == 300
    harness._gpus = [Gpu(0, "A", 1, 1), Gpu(1, "B", 1, 1)]
    assert json.loads(harness._order(wanted, "key"))["set"]["tensor_split"] == [0.0, 1.0]


async def test_a_model_is_loaded_serves_a_stream_and_is_unloaded(tmp_path: Path) -> None:
    paths = Paths(models=(str(smollm2().parent),), logs=str(tmp_path))
    model = small("smol", smollm2().name)
    async with running_neuron(model, paths=paths) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        assert await client.load(LoadRequest("smol", devices=[0])) == "loaded"
        (listed,) = await client.models(GUARD)
        assert (listed.status, listed.limit and listed.limit.context) == ("loaded", 512)
        assert (listed.vram_used_mb or 0) > 50
        async with session.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.content_type == "text/event-stream"
            body = await answer.read()
        assert body.endswith(b"data: [DONE]\n\n")
        counts = usage.from_stream(body)
        assert counts is not None
        assert (counts.completion, counts.prompt > 0) == (8, True)
        async with session.post("/tokenize", json={"model": "smol", "content": "hi"}) as answer:
            assert len((await answer.json())["tokens"]) == 1
        assert "colours" not in (tmp_path / "smol.log").read_text()
        (engine,) = [run.engine for run in neuron._residency._runs]
        # The engine's own door is locked for everybody else on this host.
        async with session.post(f"{engine.url}/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 401
        assert await client.unload(UnloadRequest("smol"), GUARD) == "unloaded"
        assert engine._process.returncode is not None
        assert (await client.models(GUARD))[0].status == "unloaded"


async def test_a_client_that_leaves_stops_the_generation(tmp_path: Path) -> None:
    paths = Paths(logs=str(tmp_path))
    async with running_neuron(small("smol", str(smollm2()), 8192), paths=paths) as (
        neuron,
        session,
    ):
        endless = {"model": "smol", "prompt": "a", "stream": True, "ignore_eos": True}
        async with session.post("/v1/completions", json=endless | {"n_predict": 4000}) as answer:
            await answer.content.readany()
            answer.close()
        (engine,) = [run.engine for run in neuron._residency._runs]

        async def is_idle() -> bool:
            async with session.get(f"{engine.url}/slots", headers=engine.headers) as answer:
                (slot,) = await answer.json()
            return not slot["is_processing"]

        await eventually(is_idle)
        (load,) = (await NeuronClient(session, neuron.url).health(GUARD)).models or ()
        assert (load.in_flight, load.queue_depth) == (0, 0)
        log = (tmp_path / "smol.log").read_text()
        (tokens,) = re.findall(r"stop processing: n_tokens = (\d+)", log)
        assert int(tokens) < 4000  # it was cut short, not finished


async def test_an_engine_that_is_killed_comes_back_with_the_next_request(tmp_path: Path) -> None:
    paths = Paths(logs=str(tmp_path))
    model = small("smol", str(smollm2()))
    async with running_neuron(model, paths=paths) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        await client.load(LoadRequest("smol"))
        (engine,) = [run.engine for run in neuron._residency._runs]
        os.kill(engine._process.pid, signal.SIGKILL)

        async def is_noticed() -> bool:
            return (await client.models(GUARD))[0].status == "unloaded"

        await eventually(is_noticed)
        async with session.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 200
            await answer.read()


async def test_a_stream_does_not_hold_up_the_end_of_its_engine(tmp_path: Path) -> None:
    paths = Paths(logs=str(tmp_path))
    async with running_neuron(small("smol", str(smollm2()), 8192), paths=paths) as (
        neuron,
        session,
    ):
        neuron._residency._drain = 0.01
        endless = {"model": "smol", "prompt": "a", "stream": True, "ignore_eos": True}
        async with session.post("/v1/completions", json=endless | {"n_predict": 4000}) as answer:
            await answer.content.readany()
            await NeuronClient(session, neuron.url).unload(UnloadRequest("smol"), GUARD)
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


async def test_a_bad_file_is_a_clear_answer_of_the_wire(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("not a model")
    paths = Paths(models=(str(tmp_path),), logs=str(tmp_path / "logs"))
    async with running_neuron(paths=paths) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        with pytest.raises(NodeError, match="invalid magic characters") as failed:
            await client.load(LoadRequest("bad"))
        assert (failed.value.status, failed.value.code) == (500, "load_failed")
        (listed,) = await client.models(GUARD)
        assert listed.status == "failed"
        assert "invalid magic characters" in (listed.error or "")
