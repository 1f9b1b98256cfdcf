"""The life of a node agent: how it starts, refuses to start, and ends, as a process too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import unused_port

from cortexd.config.neuron import Agent, Config, LocalModel, Paths
from cortexd.neuron.app import Neuron, StartError
from cortexd.nodes.client import NeuronClient
from cortexd.wire.neuron import LoadRequest
from tests.functional.processes import children, is_alive
from tests.neuron.engines import FakeHarness, local, running_neuron, smollm2
from tests.waiting import GUARD

ROOT = Path(__file__).parents[2]


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + GUARD
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def process(place: Path, listen: str, extra: str = "") -> Iterator[subprocess.Popen[str]]:
    config = place / "neuron.toml"
    config.write_text(
        f'[neuron]\nlisten = "{listen}"\n{extra}\n[paths]\nlogs = "logs"\n'
        f'[[models]]\nid = "smol"\npath = "{smollm2()}"\ncontext = 256\n'
        'args = { "cpuparams.n_threads" = 1 }\n'
    )
    command = [sys.executable, "-m", "cortexd", "neuron", "--config", str(config)]
    neuron = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield neuron
    finally:
        neuron.kill()
        neuron.communicate()


async def load(url: str) -> None:
    """Load the model of a process as soon as it answers."""
    async with ClientSession() as session:
        client, deadline = NeuronClient(session, url), time.monotonic() + GUARD
        while True:
            try:
                await client.models(GUARD)
                break
            except Exception:  # noqa: BLE001 - whatever a neuron says that has not started yet
                assert time.monotonic() < deadline
        assert await client.load(LoadRequest("smol")) == "loaded"


async def test_after_kill_9_no_engine_is_left(tmp_path: Path) -> None:
    port = unused_port()
    with process(tmp_path, f"127.0.0.1:{port}") as neuron:
        await load(f"http://127.0.0.1:{port}")
        engines = children(neuron.pid)
        assert len(engines) == 1
        neuron.kill()
        wait_gone(engines)


async def test_sigterm_ends_the_engines_and_exits_with_0(tmp_path: Path) -> None:
    port = unused_port()
    with process(tmp_path, f"127.0.0.1:{port}") as neuron:
        await load(f"http://127.0.0.1:{port}")
        engines = children(neuron.pid)
        neuron.send_signal(signal.SIGTERM)
        _, said = neuron.communicate(timeout=GUARD)
        assert neuron.returncode == 0
        assert "Traceback" not in said
        assert not any(is_alive(pid) for pid in engines)


async def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    async with running_neuron(harness=FakeHarness()) as (first, _):
        listen = f"127.0.0.1:{first.address[1]}"
        with process(tmp_path, listen) as second:
            _, said = second.communicate(timeout=GUARD)
        assert second.returncode == 1
        assert said == (
            f"cortexd neuron: can't listen on {listen}: Address already in use; "
            "end what listens there or change [neuron] listen\n"
        )


@pytest.mark.parametrize(
    ("agent", "models", "words"),
    [
        ({"listen": "nowhere"}, [], "expected host:port"),
        ({"listen": "192.0.2.1:0"}, [], "can't listen on 192.0.2.1:0: "),
        ({"token_file": "none"}, [], "none can't be read: No such file"),
        ({"token_file": "empty"}, [], "[neuron] token_file: "),
        ({}, [local("a"), local("a")], "lists 'a' twice"),
        ({}, [LocalModel("a", "a.gguf", harness="vllm")], "no harness 'vllm', only fake"),
    ],
)
async def test_what_a_neuron_cannot_start_with_is_said(
    tmp_path: Path, agent: dict[str, Any], models: list[LocalModel], words: str
) -> None:
    (tmp_path / "empty").touch()
    config = Config(Agent(**({"listen": "127.0.0.1:0"} | agent)), Paths(), tuple(models))
    neuron = Neuron(config, base=tmp_path, harnesses={"fake": FakeHarness()})
    with pytest.raises(StartError) as refused:
        await neuron.start()
    assert words in str(refused.value)


async def test_relative_paths_start_at_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m.gguf").touch()
    harness, paths = FakeHarness(), Paths(models=("models",))
    async with running_neuron(harness=harness, paths=paths, base=tmp_path) as (neuron, session):
        await NeuronClient(session, neuron.url).load(LoadRequest("m"))
        assert harness.engines[0].launch.path == tmp_path / "models/m.gguf"


async def test_without_a_token_a_door_to_the_network_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_neuron(harness=FakeHarness()):
        assert caplog.text == ""
    async with running_neuron(harness=FakeHarness(), agent=Agent(listen="0.0.0.0:0")):
        assert "no token_file is set" in caplog.text


async def test_its_endpoint_is_its_own_port_on_whichever_address() -> None:
    agent = Agent(listen="127.0.0.2:0")
    async with running_neuron(local("a"), harness=FakeHarness(), agent=agent) as (neuron, session):
        assert neuron.address[0] == "127.0.0.2"
        endpoint = await NeuronClient(session, neuron.url).endpoint("a", GUARD)
        assert endpoint == neuron.url


def test_the_example_of_the_configuration_decodes() -> None:
    lines = (ROOT / "etc/neuron.toml").read_text().splitlines()

    def decoded(text: str) -> Config:
        return msgspec.convert(
            tomllib.loads(text), Config, dec_hook=lambda kind, value: kind.parse(value)
        )

    assert decoded("\n".join(lines)) == Config()
    # What is commented out is an example too: the key at the end of each such line is real.
    models = lines[lines.index("# [[models]]") :]
    shown = decoded("\n".join(line.removeprefix("# ") for line in models))
    assert [model.id for model in shown.models] == ["Qwen/Qwen3-8B", "all-MiniLM-L6-v2"]
