from __future__ import annotations

import json
from pathlib import Path

import pytest

from cortexd.cli.main import main
from tests.cli.commands import cortexd

TEXT = "[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"


def ran(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "cortex.toml"
    file.write_text(TEXT)
    return file


def test_what_is_in_effect_is_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("config", "show", "--config", str(config)) == 0
    assert f"# {config}:2" in capsys.readouterr().out
    assert ran("config", "show", "--json", "--config", str(config)) == 0
    keys = {each["key"] for each in json.loads(capsys.readouterr().out)}
    assert {"gateway.listen", "neurons[0].name", "logging.level"} <= keys


def test_the_node_agents_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "neuron.toml").touch()
    assert ran("config", "show", "--neuron", "--config", str(tmp_path / "neuron.toml")) == 0
    assert 'listen = "127.0.0.1:13131"' in capsys.readouterr().out
    assert ran("check", "--neuron", "--config", str(tmp_path / "neuron.toml")) == 0
    assert capsys.readouterr().out.endswith("neuron.toml: good; 0 models\n")


def test_what_cant_be_used_is_not_shown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("[gateway]\nlisten = 3\n")
    assert ran("config", "show", "--config", str(config)) == 78
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{config}:2: gateway.listen: found 3 (allowed: a string)\n"


@pytest.mark.parametrize("file", ["cortex.toml", "none.toml"])
def test_what_cant_be_done_is_status_1_in_words(
    config: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    assert ran("node", "remove", "aa", "--config", str(config.parent / file)) == 1
    said = capsys.readouterr().err
    assert said.startswith("Nothing was changed: ")
    assert ('did you mean "a"?' in said) or ("none.toml: No such file" in said)


def rename(config: Path, name: str) -> None:
    config.write_text(TEXT.replace("'a'", f"'{name}'"))


async def test_a_name_that_stdout_cant_encode_is_shown_all_the_same(config: Path) -> None:
    rename(config, "\u00e4")
    show = ("config", "show", "--config", str(config))
    status, out, err = await cortexd(
        *show, cwd=config.parent, PYTHONUTF8="0", PYTHONIOENCODING="ascii"
    )
    assert (status, err) == (0, "")
    assert r"\xe4" in out


@pytest.mark.parametrize(
    "command",
    [
        ("check",),
        ("config", "show"),
        ("config", "show", "--json"),
        ("node", "add", "b", "http://127.0.0.1:1", "--token-file", "DIR/b.token"),
        ("node", "add", "b", "http://b:1", "--token-file", "DIR/b.token", "--no-probe"),
        ("node", "add", "a", "http://b:1"),
        ("node", "list", "--json"),
        ("node", "remove", "a"),
    ],
)
def test_no_command_ever_shows_a_secret(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    config.write_text(TEXT + "token_file = 'a.token'\n" + TEXT.replace("'a'", "'c'"))
    for name in ("a.token", "b.token"):
        (config.parent / name).write_text("canary-7f3a")
        (config.parent / name).chmod(0o600)
    monkeypatch.setenv("CORTEX_TOKEN__C", "canary-7f3a")
    command = tuple(each.replace("DIR", str(config.parent)) for each in command)
    ran(*command, "--config", str(config))
    (config.parent / "a.token").write_text("canary-7f3a\ncanary-7f3a")
    monkeypatch.setenv("CORTEX_TOKEN__C", "canary-7f3a canary-7f3a")
    ran(*command, "--config", str(config))
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err + config.read_text()
