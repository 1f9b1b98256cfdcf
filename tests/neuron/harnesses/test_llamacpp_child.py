"""The child alone: how it is told what to do, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cortexd.neuron.harnesses import llamacpp_child
from tests.neuron.engines import smollm2
from tests.waiting import GUARD

COMMAND = [sys.executable, "-m", "cortexd.neuron.harnesses.llamacpp_child"]


def run(*args: str, order: object = None) -> subprocess.CompletedProcess[str]:
    said = "" if order is None else json.dumps(order) + "\n"
    return subprocess.run(
        [*COMMAND, *args], input=said, capture_output=True, text=True, timeout=GUARD
    )


def test_it_prints_its_url_and_nothing_else_and_ends_when_stdin_does() -> None:
    settings = {"n_ctx": 256, "hostnames": ["127.0.0.1"], "port": 0, "cpuparams.n_threads": 1}
    done = run(str(os.getpid()), order={"model": str(smollm2()), "id": "m", "set": settings})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
    assert done.stdout.count("\n") == 1
    assert "initializing" in done.stderr  # later lines may be lost: it ends without waiting


def test_it_ends_at_once_when_its_parent_is_gone_already() -> None:
    done = run("1")
    assert (done.returncode, done.stdout) == (1, "")


def test_it_ends_when_it_is_told_nothing() -> None:
    assert run(str(os.getpid())).returncode == 0


def test_it_tells_the_gpus_as_json() -> None:
    assert isinstance(json.loads(run("--devices").stdout.splitlines()[-1]), list)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_bath": 1}, "args: llama.cpp has no setting 'n_bath'; 'n_batch'?"),
        ({"cpuparams.n_thread": 1}, "no setting 'cpuparams.n_thread'; 'n_threads'?"),
        ({"nothing.at.all": 1}, "no setting 'nothing.at.all'"),
        ({"__class__": 1}, "no setting '__class__'"),
        ({"n_batch": "many"}, "args: n_batch = 'many': "),
        ({"pooling_type": "mediocre"}, "it can be LLAMA_POOLING_TYPE_UNSPECIFIED"),
    ],
)
def test_a_setting_that_is_wrong_is_named(settings: dict[str, object], words: str) -> None:
    done = run(str(os.getpid()), order={"model": "m.gguf", "id": "m", "set": settings})
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_reach_nested_parameters_and_enumerations(tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    for name, value in {
        "n_batch": 64,
        "cpuparams.n_threads": 1,
        "pooling_type": "mean",
        "sampling.temp": 0.5,
        "chat_template": "{{ messages }}",
    }.items():
        llamacpp_child.set_param(params, name, value)
    assert params.n_batch == 64
    assert params.cpuparams.n_threads == 1
    assert params.pooling_type == xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    assert params.sampling.temp == 0.5
    assert params.chat_template == "{{ messages }}"


def test_an_attribute_that_is_not_there_is_never_made() -> None:
    params = SimpleNamespace(n_ctx=1)
    with pytest.raises(SystemExit):
        llamacpp_child.set_param(params, "n_new", 1)
    assert vars(params) == {"n_ctx": 1}
