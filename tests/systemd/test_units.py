"""The units as systemd's own tool judges them, where it is; and what only people could forget."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cortexd.cli import units

ROOT = Path(__file__).parents[2]
SERVICES = ("cortexd.service", "cortexd-neuron.service")
# Of ten, by what each line that could be there would keep away; the neuron has to see its GPUs.
WORST = {"cortexd.service": 1.5, "cortexd-neuron.service": 2.0}


def lines(name: str) -> list[str]:
    return (ROOT / "systemd" / name).read_text().splitlines()


if shutil.which("systemd-analyze"):

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_service_is_shut_off_as_far_as_its_work_allows(name: str) -> None:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", ROOT / "systemd" / name],
            capture_output=True,
            text=True,
            check=True,
        )
        found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
        assert found, done.stdout
        assert float(found[1]) <= WORST[name], re.sub("(?m)^✓.*\n", "", done.stdout)

    def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
        program = shutil.which("true")
        assert program
        planned = units.files(program, units.Choice(neuron=True, socket=True))
        written = [file for file in planned if file.path.parent == units.UNITS]
        for file in written:
            (tmp_path / file.path.name).write_text(file.content)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(file.path.name for file in written)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert len(written) == 3
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_typo_does_not_loop_and_no_secret_is_in_the_environment(name: str) -> None:
    assert "RestartPreventExitStatus=78" in lines(name)
    assert "Restart=always" in lines(name)
    for line in lines(name):
        if line.startswith("Environment="):
            assert not re.search("token|key|secret", line, re.IGNORECASE)


def test_a_stop_may_take_twice_the_time_that_streams_are_given() -> None:
    [stop] = [int(it[15:-1]) for it in lines("cortexd.service") if it.startswith("TimeoutStopSec=")]
    [drain] = re.findall(r'shutdown_timeout = "(\d+)s"', units.shipped("etc/cortex.toml"))
    assert stop > 2 * int(drain)


def test_the_socket_has_the_port_of_the_configuration() -> None:
    [port] = [it[13:] for it in lines("cortexd.socket") if it.startswith("ListenStream=")]
    assert re.findall(r'# listen = ".*:(\d+)"', units.shipped("etc/cortex.toml")) == [port]


@pytest.mark.parametrize("folder", ["systemd", "etc"])
def test_what_is_shipped_is_what_lies_in_the_repository(folder: str) -> None:
    """By links in a checkout; an sdist has copies."""
    shipped = Path(units.__file__).parents[1] / "shipped" / folder
    here = {file.name: file.read_text() for file in (ROOT / folder).iterdir()}
    assert {file.name: file.read_text() for file in shipped.iterdir()} == here


def test_a_wheel_carries_units_and_examples() -> None:
    """By the patterns of setup.cfg, which setuptools takes relative to the package."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["cortexd"].split()
    carried = {path for pattern in patterns for path in (ROOT / "cortexd").glob(pattern)}
    for folder in ("etc", "systemd"):
        for file in (ROOT / folder).iterdir():
            assert ROOT / "cortexd/shipped" / folder / file.name in carried
