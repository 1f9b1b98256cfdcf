"""`cortexd install-systemd`, as far as it needs no root: below a prefix, and what it refuses."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cortexd.cli import install_systemd, units
from cortexd.cli.main import main

NEEDED = install_systemd._installed


class Done(NamedTuple):
    returncode: int | str | None
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def cortexd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command of a cortexd that every user can read, wherever this checkout lies."""
    monkeypatch.setattr(
        install_systemd, "_installed", lambda: ("/opt/cortexd/bin/cortexd", [Path("/usr/bin")])
    )
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["cortexd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return Done(ended.value.code, *capsys.readouterr())

    return run


def installed(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def test_below_a_prefix_everything_is_written_and_nothing_is_run(
    tmp_path: Path, cortexd: Command
) -> None:
    done = cortexd("install-systemd", "--yes", "--neuron", "--socket", "--prefix", str(tmp_path))
    assert done.returncode == 0
    assert done.stderr == ""
    planned = units.files("", units.Choice(neuron=True, socket=True))
    assert set(installed(tmp_path)) == {str(file.path)[1:] for file in planned}
    assert stat.S_IMODE((tmp_path / "etc/cortexd/cortex.toml").stat().st_mode) == 0o640
    assert "systemctl enable --now cortexd.socket cortexd\n" in done.stdout
    assert "daemon-reload" not in done.stdout


def test_what_is_done_is_not_done_again(tmp_path: Path, cortexd: Command) -> None:
    arguments = ("install-systemd", "--yes", "--prefix", str(tmp_path))
    cortexd(*arguments)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = cortexd(*arguments)
    assert again.returncode == 0
    assert again.stdout.count("  leave  ") == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_changed_configuration_is_kept_and_an_old_unit_replaced(
    tmp_path: Path, cortexd: Command
) -> None:
    arguments = ("install-systemd", "--yes", "--prefix", str(tmp_path))
    cortexd(*arguments)
    config = tmp_path / "etc/cortexd/cortex.toml"
    unit = tmp_path / "etc/systemd/system/cortexd.service"
    new = unit.read_text()
    config.write_text("# mine\n")
    unit.write_text(units.MARK + "[Service]\n")
    again = cortexd(*arguments)
    assert f"  keep     {config}  (it is yours: nothing in it is changed)\n" in again.stdout
    assert f"  replace  {unit}  (it is of another version)\n" in again.stdout
    assert config.read_text() == "# mine\n"
    assert unit.read_text() == new


def test_a_dry_run_shows_the_plan_and_changes_nothing(tmp_path: Path, cortexd: Command) -> None:
    done = cortexd("install-systemd", "--dry-run", "--prefix", str(tmp_path))
    assert done.returncode == 0
    assert f"  write    {tmp_path}/etc/cortexd/cortex.toml\n" in done.stdout
    assert installed(tmp_path) == {}


def test_it_does_not_go_on_without_a_yes(tmp_path: Path, cortexd: Command) -> None:
    done = cortexd("install-systemd", "--prefix", str(tmp_path))
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert installed(tmp_path) == {}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "is_agreed"),
    [("y\n", True), ("Yes \n", True), ("\n", False), ("no\n", False), ("", False)],
)
def test_only_a_yes_is_a_yes(monkeypatch: pytest.MonkeyPatch, typed: str, is_agreed: bool) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert install_systemd._agreed() is is_agreed


def test_beside_a_package_it_says_that_nothing_is_left(tmp_path: Path, cortexd: Command) -> None:
    unit = tmp_path / "lib/systemd/system/cortexd.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    done = cortexd("install-systemd", "--yes", "--prefix", str(tmp_path))
    assert done.returncode == 1
    assert "systemctl enable --now cortexd" in done.stderr
    assert list(installed(tmp_path)) == ["lib/systemd/system/cortexd.service"]


def test_a_place_that_takes_nothing_is_named_without_a_traceback(
    tmp_path: Path, cortexd: Command
) -> None:
    (tmp_path / "etc").write_text("a file")
    done = cortexd("install-systemd", "--yes", "--prefix", str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path}/etc" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--yes", "--neuron")])
@pytest.mark.parametrize("home", ["/root", "/home/me", "/tmp"])
def test_an_environment_that_the_service_does_not_see_is_refused_before_any_plan(
    tmp_path: Path,
    cortexd: Command,
    monkeypatch: pytest.MonkeyPatch,
    home: str,
    options: tuple[str, ...],
) -> None:
    python = Path(home, "venv/bin/python")  # a link to /usr/bin/python3, as in any environment
    monkeypatch.setattr(install_systemd, "_installed", lambda: (f"{python} -m cortexd", [python]))
    done = cortexd("install-systemd", *options, "--prefix", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    above = "/" + home.split("/")[1]
    assert done.stderr.startswith(
        f"Nothing was changed: {python} lies below {above}, which the service can't see ("
    )
    assert "sudo python3 -m venv /opt/cortexd\n" in done.stderr
    again = f"sudo /opt/cortexd/bin/cortexd install-systemd {' '.join(options)}".rstrip()
    assert again in done.stderr
    assert installed(tmp_path) == {}


def test_every_file_that_the_service_runs_is_checked() -> None:
    import cortexd

    _, needed = NEEDED()
    assert {Path(sys.executable), Path(sys.base_prefix), Path(cortexd.__file__)} <= set(needed)


def test_the_refusal_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "/opt/cortexd/bin/cortexd"
    refusal = install_systemd._refusal
    missing = refusal(command, [["systemd-of-another-world"]])
    assert missing
    assert "cortexd serve" in missing
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["cortexd", "install-systemd", "--socket"])
    assert refusal(command, []) == (
        f"this takes root. Call it again as: sudo {command} install-systemd --socket"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert refusal(command, []) is None
