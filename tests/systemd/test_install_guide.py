"""docs/install.md, word by word, on a fresh Debian that is booted with systemd."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.systemd import machine
from tests.systemd.machine import ROOT, Machine, booted

pytestmark = pytest.mark.soak

GUIDE = (ROOT / "docs/install.md").read_text()
HEALTH = "curl --fail --silent --max-time 30 http://localhost:8080/health"
LEFT = "command -v cortexd || systemctl list-unit-files 'cortexd*' -q || true"
TOKEN = 'token_file = "/run/credentials/cortexd.service/here.token"'


def steps(section: str) -> list[str]:
    """The commands of a section, block by block."""
    text = re.split(rf"^## {section}\n", GUIDE, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def follow(host: Machine, section: str) -> None:
    for step in steps(section):
        host.sh(step)


def until(host: Machine, condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + machine.GUARD
    while not condition():
        assert time.monotonic() < ends, f"{what}\n{host.sh('journalctl -u cortexd -n 50')}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("debian") / "base"
    machine.debootstrap(root)
    return root


@pytest.fixture
def root(debian: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "root"
    subprocess.run(["cp", "-a", debian, copied], check=True)
    return copied


def serves(host: Machine) -> None:
    """Both are up and see each other; neither had to be started twice."""
    until(host, lambda: json.loads(host.sh(HEALTH))["status"] == "ok", "the neuron is not seen")
    for unit in ("cortexd", "cortexd-neuron"):
        assert host.shown(unit, "ActiveState") == "active"
        assert host.shown(unit, "NRestarts") == "0"
    assert "process_start_time_seconds" in host.sh(steps("Scrape it")[0])


def test_the_way_with_pip(root: Path) -> None:
    with booted(root) as host:
        by_pip, _, service = steps("With pip")
        host.sh(by_pip)
        assert "Done. Next:" in host.sh(service, answer="y\n")
        assert host.shown("cortexd", "ActiveState") == "inactive"
        follow(host, "The first configuration")
        follow(host, "Enable it")
        serves(host)
        assert host.sh("stat -c '%a %U %G' /etc/cortexd/cortex.toml") == "640 root cortexd\n"

        follow(host, "Keep tokens secret")
        host.sh(rf"""sed -i '/^endpoint/a {TOKEN}' /etc/cortexd/cortex.toml""")
        host.sh("systemctl restart cortexd")
        serves(host)

        follow(host, "Hold the port over restarts")
        host.sh("systemctl stop cortexd")
        assert json.loads(host.sh(HEALTH))["status"], "who asks starts it, and waits for it"
        serves(host)

        before = host.sh("cat /etc/cortexd/cortex.toml")
        host.sh(steps("Upgrade")[0])
        assert host.sh("cat /etc/cortexd/cortex.toml") == before
        serves(host)

        host.sh(steps("Uninstall")[0])
        assert host.sh(LEFT) == ""
        assert host.sh("id -un cortexd") == "cortexd\n"


def test_the_way_with_pipx(root: Path) -> None:
    with booted(root) as host:
        _, by_pipx, service = steps("With pip")
        host.sh(by_pipx)
        host.sh(service.replace("\n", " --yes\n"))
        host.sh("systemctl start cortexd-neuron cortexd")
        assert "/opt/pipx/" in host.shown("cortexd", "ExecStart")
        assert json.loads(host.sh(HEALTH))["status"] == "ok"  # the examples are commented out


def test_the_way_of_the_debian_package(root: Path) -> None:
    with booted(root) as host:
        follow(host, "As a Debian package")
        assert host.shown("cortexd", "ActiveState") == "inactive"
        listed = host.sh("dpkg-deb -c dist/cortexd_*.deb")
        for there in (
            "./usr/bin/cortexd",
            "./etc/cortexd/cortex.toml",
            "./etc/cortexd/neuron.toml",
            "./usr/lib/systemd/system/cortexd.service",
            "./usr/lib/systemd/system/cortexd-neuron.service",
            "./usr/lib/systemd/system/cortexd.socket",
            "./usr/lib/sysusers.d/cortexd.conf",
            "./usr/lib/tmpfiles.d/cortexd.conf",
        ):
            assert f" {there}" in listed
        assert " ./usr/share/man/man1/cortexd.1.gz" in listed
        assert "__pycache__" not in listed
        assert "Depends: python3 (>= 3.11), python3 (<< 3.12~)" in host.sh("dpkg-deb -I dist/*.deb")
        assert host.sh("grep -rl /srv/ /opt/cortexd || true") == "", "it knows where it was built"
        follow(host, "The first configuration")
        follow(host, "Enable it")
        serves(host)
        assert host.sh("stat -c '%a %U %G' /etc/cortexd/cortex.toml") == "640 root cortexd\n"
        assert "as a package" in host.sh("cortexd install-systemd --yes 2>&1 || true")

        before = host.shown("cortexd", "MainPID")
        host.sh("sed -i 's/^__version__ = .*/__version__ = \"99.0\"/' cortexd/__init__.py")
        host.sh(steps("Upgrade")[1])
        serves(host)
        assert host.shown("cortexd", "MainPID") != before
        assert host.sh("cortexd --version") == "cortexd 99.0\n"
        assert "8B" in host.sh("cat /etc/cortexd/cortex.toml")

        host.sh(steps("Uninstall")[1])
        assert host.sh(LEFT) == ""
        assert "8B" in host.sh("cat /etc/cortexd/cortex.toml")
        host.sh("apt-get purge --yes cortexd")
        assert host.sh("ls -d /etc/cortexd /var/lib/cortexd || true").count("cannot access") == 2


@pytest.fixture
def host(root: Path) -> object:
    with booted(root) as running:
        running.sh(steps("With pip")[0])
        running.sh("cortexd install-systemd --yes")
        follow(running, "The first configuration")
        yield running


def test_the_manager_is_told_and_tells(host: Machine) -> None:
    host.sh("systemctl start cortexd")
    before = host.shown("cortexd", "MainPID")
    assert host.shown("cortexd", "StatusText")

    host.sh("systemctl reload cortexd")
    until(host, lambda: host.shown("cortexd", "ActiveState") == "active", "it still reloads")
    assert host.shown("cortexd", "MainPID") == before

    host.sh("mkdir -p /run/systemd/system/cortexd.service.d")
    host.sh("printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/cortexd.service.d/w.conf")
    host.sh("systemctl daemon-reload; systemctl restart cortexd")
    time.sleep(5)  # more than twice the time that a service has to give a sign of life
    assert host.shown("cortexd", "NRestarts") == "0"
    host.sh("kill -STOP $(systemctl show cortexd -p MainPID --value)")
    until(host, lambda: host.shown("cortexd", "NRestarts") == "1", "what hangs is not replaced")
    until(host, lambda: host.shown("cortexd", "ActiveState") == "active", "it does not come back")

    host.sh("echo '[gatway]' >>/etc/cortexd/cortex.toml; systemctl restart cortexd || true")
    until(host, lambda: host.shown("cortexd", "ActiveState") == "failed", "a typo loops")
    assert host.shown("cortexd", "ExecMainStatus") == "78"
    assert "gatway" in host.sh("journalctl -u cortexd -n 20")


def test_whoever_starts_it_by_hand_needs_nothing_else(host: Machine) -> None:
    """A plain user, with no home and no configuration but the example."""
    host.sh(
        "rm -r /etc/cortexd;"
        "HOME=/nonexistent setpriv --reuid=nobody --clear-groups cortexd serve & serving=$!;"
        "curl --retry 50 --retry-delay 1 --retry-connrefused --fail -s localhost:8080/health;"
        "kill $serving; wait $serving"
    )


def test_every_command_of_the_guide_is_followed() -> None:
    followed = ["With pip", "As a Debian package", "The first configuration", "Enable it"]
    followed += ["Scrape it", "Keep tokens secret", "Hold the port over restarts"]
    followed += ["Upgrade", "Uninstall"]
    assert len(re.findall("^```sh$", GUIDE, re.MULTILINE)) == len(
        list(itertools.chain.from_iterable(map(steps, followed)))
    )
