"""The command line as a process: what people see when something is wrong, and the exit status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cortexd import __version__
from cortexd.cli.main import COMMANDS, main
from tests.waiting import GUARD


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=GUARD,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def cortexd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "cortexd", *arguments, cwd=cwd)


@pytest.mark.parametrize("arguments", [(), ("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_is_there_for_everything(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: cortexd" in text
    if len(arguments) == 2:
        assert f"cortexd {arguments[0]}" in text.partition("example")[2]


def test_the_version() -> None:
    assert cortexd("--version").stdout == f"cortexd {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_typo_in_the_configuration_is_status_78_and_one_line_in_words(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "cortex.toml").write_text("[gateway]\nlistne = 1\n")
    done = cortexd(command, "--config", "cortex.toml", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith(
        'cortex.toml:2: gateway.listne: unknown key; did you mean "listen"?'
    )
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["serve", "neuron", "check"])
def test_no_configuration_is_status_78_and_names_the_file(tmp_path: Path, command: str) -> None:
    done = cortexd(command, "--config", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr == "nowhere.toml: can't be read: No such file or directory\n"


def test_a_token_file_that_is_not_there_is_status_78(tmp_path: Path) -> None:
    (tmp_path / "cortex.toml").write_text(
        "[[neurons]]\nname='a'\nendpoint='http://a:1'\ntoken_file='no.token'\n"
    )
    done = cortexd("serve", "--config", "cortex.toml", cwd=tmp_path)
    assert done.returncode == 78
    assert "no.token" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "table"), [("serve", "gateway"), ("neuron", "neuron")])
def test_a_taken_port_is_status_1_in_words(tmp_path: Path, command: str, table: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "x.toml").write_text(
            f"[{table}]\nlisten = '127.0.0.1:{port}'\n"
            + (f"[paths]\nlogs = '{tmp_path}'\n" if table == "neuron" else "")
        )
        done = cortexd(command, "--config", "x.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_admin_port_is_status_1_and_names_its_key(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "x.toml").write_text(
            f"[gateway]\nlisten = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:{port}'\n"
        )
        done = cortexd("serve", "--config", "x.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port} ([gateway] admin_listen): " in done.stderr
    assert "in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("command", "table"), [("serve", "gateway"), ("neuron", "neuron")])
def test_too_few_descriptors_are_status_1_in_words(
    tmp_path: Path, command: str, table: str
) -> None:
    (tmp_path / "x.toml").write_text(
        f"[{table}]\nlisten = '127.0.0.1:0'\n"
        + (f"[paths]\nlogs = '{tmp_path}'\n" if table == "neuron" else "")
    )
    words = f"ulimit -n 300; exec {sys.executable} -m cortexd {command} --config x.toml"
    done = run("sh", "-c", words, cwd=tmp_path)
    assert done.returncode == 1
    assert "at most 300 files may be open, 768 are needed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_check_says_that_all_is_good(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/cortex.toml").write_text(
        "[gateway]\nlisten = '127.0.0.1:8080'\n[[models]]\nid='m'\n"
    )
    done = cortexd("check", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == "etc/cortex.toml: good; 0 neurons, 1 model, 0 aliases\n"


def test_check_warns_of_a_neuron_that_anyone_can_reach(tmp_path: Path) -> None:
    config = tmp_path / "neuron.toml"
    config.write_text('[neuron]\nlisten = "0.0.0.0:13131"\n')
    done = cortexd("check", "--neuron", "--config", str(config))
    assert done.returncode == 0
    assert "anyone who can reach 0.0.0.0:13131 can load, unload and use models" in done.stderr
    assert "good" not in done.stdout
    config.write_text("")
    done = cortexd("check", "--neuron", "--config", str(config))
    assert (done.stderr, "good" in done.stdout) == ("", True)


def test_the_gateway_imports_nothing_of_the_neuron_or_its_engines() -> None:
    code = (
        "import sys, cortexd.cli.main as m; m.parser(); import cortexd.gateway.app;"
        "print([n for n in sys.modules if n.startswith(('cortexd.neuron', 'xllamacpp', 'tomlkit',"
        " 'numpy', 'openai'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=GUARD, check=True
    )
    assert done.stdout == "[]\n"
