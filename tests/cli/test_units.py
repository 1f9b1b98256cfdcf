"""What makes a service: which files, where, and what becomes of those that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.cli import units
from cortexd.cli.units import Choice, File

COMMAND = "/opt/cortexd/bin/cortexd"


@pytest.mark.parametrize(
    ("choice", "more"),
    [
        (Choice(), set()),
        (Choice(socket=True), {"/etc/systemd/system/cortexd.socket"}),
        (
            Choice(neuron=True),
            {"/etc/cortexd/neuron.toml", "/etc/systemd/system/cortexd-neuron.service"},
        ),
    ],
)
def test_only_what_was_asked_for_is_planned(choice: Choice, more: set[str]) -> None:
    assert {str(file.path) for file in units.files(COMMAND, choice)} == more | {
        "/etc/cortexd/cortex.toml",
        "/etc/systemd/system/cortexd.service",
        "/etc/sysusers.d/cortexd.conf",
        "/etc/tmpfiles.d/cortexd.conf",
    }


@pytest.mark.parametrize("command", [COMMAND, "/opt/cortexd/bin/python -m cortexd"])
def test_services_start_the_cortexd_that_is_installed(command: str) -> None:
    planned = {file.path.name: file for file in units.files(command, Choice(neuron=True))}
    config = "--config /etc/cortexd"
    gateway = planned["cortexd.service"].content.splitlines()
    neuron = planned["cortexd-neuron.service"].content.splitlines()
    assert f"ExecStart={command} serve {config}/cortex.toml" in gateway
    assert f"ExecStart={command} neuron {config}/neuron.toml" in neuron
    assert not [line for line in gateway + neuron if units.SHIPPED_COMMAND in line]


def test_a_configuration_is_for_its_owner_and_a_unit_for_everybody() -> None:
    for file in units.files(COMMAND, Choice(neuron=True, socket=True)):
        assert file.is_yours == (file.path.parent == units.ETC)
        assert file.mode == (0o640 if file.is_yours else 0o644)


@pytest.mark.parametrize(
    ("found", "is_yours", "fate"),
    [
        (None, False, "new"),
        (None, True, "new"),
        ("content", False, "same"),
        ("content", True, "same"),
        (units.MARK + "of an older version", False, "replaced"),
        (units.MARK + "of an older version", True, "kept"),
        ("somebody else's", False, "kept"),
        ("somebody else's", True, "kept"),
        ("", False, "kept"),  # such as a masked unit, which leads to /dev/null
    ],
)
def test_what_is_somebodys_stays(
    tmp_path: Path, found: str | None, is_yours: bool, fate: str
) -> None:
    if found is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/file").write_text(found)
    assert units.fate(File(Path("/etc/file"), "content", is_yours=is_yours), tmp_path) == fate


def test_only_a_manager_that_runs_is_told() -> None:
    assert units.commands(is_running=True)[:-1] == units.commands(is_running=False)
    assert units.commands(is_running=True)[-1] == ["systemctl", "daemon-reload"]


def test_a_package_of_the_distribution_is_noticed(tmp_path: Path) -> None:
    assert units.packaged(tmp_path) is None
    unit = tmp_path / "usr/lib/systemd/system/cortexd.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    assert units.packaged(tmp_path) == unit


def test_a_service_can_run_what_everybody_may_read() -> None:
    paths = [Path("/usr/bin"), Path("/bin/sh")]
    assert (units.hidden(paths), units.unreadable(paths)) == (None, None)


@pytest.mark.parametrize("home", units.HIDDEN)
def test_a_service_sees_no_home_and_no_temporary_directory(home: Path) -> None:
    trouble = units.hidden([Path("/usr/bin"), home / "cortexd"])
    setting = "PrivateTmp=" if home.name == "tmp" else "ProtectHome="
    assert trouble == (f"{home}/cortexd lies below {home}, which the service can't see ({setting})")


def test_both_link_and_target_must_be_visible_to_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "HIDDEN", (tmp_path / "home",))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/python").symlink_to("/usr/bin/python3")
    (tmp_path / "opt").symlink_to(tmp_path / "home")
    assert units.hidden([tmp_path / "home/python"])
    assert units.hidden([tmp_path / "opt"])


def test_a_service_does_not_read_what_is_closed_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o750)
    closed.joinpath("cortexd").touch(0o755)
    closed.chmod(0o750)
    trouble = units.unreadable([closed / "cortexd"])
    assert trouble == f"the user cortexd may not read {closed}"
