"""Missing files and directories: mistakes for `cortexd check`, no obstacle for a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.cli.main import main
from cortexd.config.check import load_gateway, read_neuron
from cortexd.config.neuron import HARNESSES, Agent, Config, LocalModel, Paths
from cortexd.neuron.app import Neuron


def checked(
    place: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int | str | None, str, str]:
    name = "neuron.toml" if options else "cortex.toml"
    with pytest.raises(SystemExit) as ended:
        main(["check", *options, "--config", str(place / name)])
    text = capsys.readouterr()
    return ended.value.code, text.out, text.err.replace(str(place), "DIR")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[paths]\nmodels = ['models']",
            "2: paths.models[0]: there is no directory DIR/models (allowed: an existing directory)",
        ),
        (
            "[paths]\nmodels = ['neuron.toml']",
            "2: paths.models[0]: DIR/neuron.toml is no directory (allowed: an existing directory)",
        ),
        (
            "[paths]\nlogs = 'a/logs'",
            "2: paths.logs: there is no directory DIR/a (allowed: an existing directory)",
        ),
        (
            "[paths]\nmodels = ['.']\n[[models]]\nid = 'm'\npath = 'm.gguf'",
            "5: models[0].path: there is no file DIR/m.gguf (allowed: a model file, or its first "
            "part)",
        ),
        (
            "[paths]\nmodels = ['.']\n[[models]]\nid = 'm'\npath = '.'",
            "5: models[0].path: DIR is a directory (allowed: a model file)",
        ),
    ],
)
def test_check_reports_what_a_neuron_does_not_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "neuron.toml").write_text(text)
    status, out, err = checked(tmp_path, capsys, "--neuron")
    assert (status, out, err) == (78, "", f"DIR/neuron.toml:{message}\n")
    assert read_neuron(tmp_path / "neuron.toml", {}).value


def test_check_is_content_with_what_is_there_or_will_be_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "neuron.toml").write_text(
        "[paths]\nmodels = ['.']\nlogs = 'logs'\n[[models]]\nid = 'm'\npath = 'm.gguf'\n"
    )
    assert checked(tmp_path, capsys, "--neuron")[0] == 0
    (tmp_path / "neuron.toml").write_text("")  # the default directory may be missing
    assert checked(tmp_path, capsys, "--neuron")[0] == 0
    (tmp_path / "cortex.toml").write_text("[gateway]\nstate_dir = 'state'\n")
    assert checked(tmp_path, capsys)[0] == 0


@pytest.mark.parametrize("name", ["x" * 300, "loop/x"])
def test_check_reports_a_name_that_no_file_can_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "neuron.toml").write_text(
        f"[paths]\nmodels = ['.']\n[[models]]\nid = 'm'\npath = '{name}'\n"
    )
    status, _, err = checked(tmp_path, capsys, "--neuron")
    assert status == 78
    assert err.startswith(f"DIR/neuron.toml:5: models[0].path: there is no file DIR/{name} ")
    (tmp_path / "cortex.toml").write_text(f"[gateway]\nstate_dir = '{name}'\n")
    assert checked(tmp_path, capsys)[0] == (78 if "/" in name else 0)


def test_check_reports_a_state_directory_below_one_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.toml").write_text("[gateway]\nstate_dir = 'a/state'\n")
    status, _, err = checked(tmp_path, capsys)
    assert status == 78
    assert err.startswith("DIR/cortex.toml:2: gateway.state_dir: there is no directory DIR/a ")
    assert load_gateway(tmp_path / "cortex.toml", {})


@pytest.mark.parametrize(
    ("harness", "message"),
    [
        ("llama", 'found "llama"; did you mean "llamacpp"? (allowed: llamacpp)'),
        ("vllm", 'found "vllm" (allowed: llamacpp)'),
    ],
)
def test_check_refuses_a_harness_that_the_neuron_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harness: str, message: str
) -> None:
    (tmp_path / "m").touch()
    (tmp_path / "neuron.toml").write_text(
        f"[paths]\nmodels = ['.']\n[[models]]\nid = 'm'\npath = 'm'\nharness = '{harness}'\n"
    )
    status, _, err = checked(tmp_path, capsys, "--neuron")
    assert (status, err) == (78, f"DIR/neuron.toml:6: models[0].harness: {message}\n")


async def test_the_neuron_has_every_harness_that_check_allows(tmp_path: Path) -> None:
    config = Config(
        neuron=Agent(listen="127.0.0.1:0"),
        paths=Paths(models=(), logs=str(tmp_path)),
        models=tuple(LocalModel(name, "m.gguf", name) for name in HARNESSES),
    )
    neuron = Neuron(config, base=tmp_path)
    await neuron.start()
    await neuron.close()
