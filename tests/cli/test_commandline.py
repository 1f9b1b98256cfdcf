"""Answers to invalid command lines, and `cortexd help`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.cli import paths
from cortexd.cli.main import COMMANDS, main


def ran(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("statsu",), "unknown command 'statsu'; did you mean 'status'?"),
        (("neuron-add",), "unknown command 'neuron-add'; did you mean 'neuron'?"),
        (("xyz",), f"unknown command 'xyz'; there are: {', '.join(COMMANDS)}"),
        (("node", "ad", "x"), "unknown action 'ad'; did you mean 'add'?"),
        (("help", "nod"), "unknown command 'nod'; did you mean 'node'?"),
        (("status", "--whatch"), "unknown arguments: --whatch; did you mean '--watch'?"),
        (("node", "list", "--jsn"), "unknown arguments: --jsn; did you mean '--json'?"),
        (("status", "beast"), "unknown arguments: beast"),
        (
            ("serve", "--log-level", "inof"),
            "argument --log-level: found 'inof'; did you mean 'info'? (allowed: debug, info, "
            "warning, error)",
        ),
    ],
)
def test_unknown_argument_exits_2_with_a_suggestion(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert ran(*arguments) == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.splitlines()[-1].partition("error: ")[2] == message


@pytest.mark.parametrize("topic", [(), *((name,) for name in COMMANDS), ("node", "add")])
def test_help_shows_what_the_option_shows(
    capsys: pytest.CaptureFixture[str], topic: tuple[str, ...]
) -> None:
    assert ran("help", *topic) == 0
    shown = capsys.readouterr().out
    assert ran(*topic, "--help") == 0
    assert shown == capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("serve",), "cortex.toml"),
        (("check",), "cortex.toml"),
        (("neuron",), "neuron.toml"),
        (("check", "--neuron"), "neuron.toml"),
        (("config", "show"), "cortex.toml"),
        (("node", "list"), "cortex.toml"),
        (("node", "add", "a", "http://a:1"), "cortex.toml"),
    ],
)
def test_no_configuration_anywhere_names_both_places(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "SYSTEM", tmp_path / "system")
    assert ran(*command) == 78
    assert capsys.readouterr().err == (
        f"There is no configuration: neither {tmp_path}/system/{name} nor {tmp_path}/etc/{name} "
        "exists. Name one with --config.\n"
    )
