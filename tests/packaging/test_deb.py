"""The Debian package, without building it; `make soak` builds and installs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cortexd.cli.main import COMMANDS
from docs.manpage import page

ROOT = Path(__file__).parents[2]
DEB = ROOT / "packaging/deb"


@pytest.mark.parametrize(
    ("shell", "script"),
    [("bash", "build"), ("sh", "postinst"), ("sh", "prerm"), ("sh", "postrm")],
)
def test_scripts_are_executable_and_stop_at_the_first_mistake(shell: str, script: str) -> None:
    text = (DEB / script).read_text()
    assert text.splitlines()[0].endswith(shell)
    assert re.search(r"^set -e", text, re.MULTILINE)
    done = subprocess.run([shell, "-n", DEB / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_installation_starts_nothing_and_an_upgrade_only_what_runs() -> None:
    text = (DEB / "postinst").read_text()
    called = re.findall(r"systemctl (\S+)", text)
    assert called == ["daemon-reload", "try-restart"]


def test_every_unit_is_stopped_before_it_goes() -> None:
    services = {
        path.name for path in (ROOT / "systemd").glob("*.s*") if "sysusers" not in path.name
    }
    assert services == {"cortexd.service", "cortexd-neuron.service", "cortexd.socket"}
    for line in (DEB / "prerm").read_text().splitlines():
        if "systemctl" in line:
            assert services <= set(line.split())


def test_the_template_is_filled_by_the_build() -> None:
    holes = set(re.findall(r"@(\w+)@", (DEB / "control.in").read_text()))
    assert holes == set(re.findall(r"s/@(\w+)@/", (DEB / "build").read_text()))
    assert {"VERSION", "ARCHITECTURE", "PYTHON"} <= holes


def test_a_purge_leaves_the_models() -> None:
    text = (DEB / "postrm").read_text()
    removed = re.findall(r"rm -rf (.*)", text)
    assert removed
    assert not any("models" in line or line.endswith("/lib/cortexd") for line in removed)


def test_package_is_compiled_on_the_host_and_cleaned_before_it_goes() -> None:
    build, postinst, prerm = ((DEB / name).read_text() for name in ("build", "postinst", "prerm"))
    assert "compileall" not in build
    assert "compileall -q --invalidation-mode unchecked-hash /opt/cortexd/lib" in postinst
    assert "find /opt/cortexd -name __pycache__" in prerm


def test_maintainer_is_reached_elsewhere_than_at_localhost() -> None:
    assert "Maintainer: @MAINTAINER@\n" in (DEB / "control.in").read_text()
    build = (DEB / "build").read_text()
    assert "localhost" not in build
    assert '"${DEBEMAIL:=' in build


def test_manual_page_has_every_command_and_nothing_that_troff_would_take_for_a_request() -> None:
    text = page()
    assert text.startswith('.TH CORTEXD 1 "" "cortexd ')
    for name in COMMANDS:
        assert f".SS cortexd {name}\n".replace("-", r"\-") in text
    requests = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".SS", ".B", ".nf", ".fi"}
