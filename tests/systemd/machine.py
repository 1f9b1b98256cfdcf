"""A fresh Debian with a systemd of its own, in a container: what a service is really like.

Needs root, debootstrap and systemd-nspawn. It reaches no network: what pip may install lies in
/srv/wheels, a checkout of this repository in /srv/cortexd.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"  # with the oldest Python that we support
INCLUDED = (
    "systemd systemd-sysv dbus python3 python3-venv python3-pip pipx make ca-certificates curl "
    "binutils"
)
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GUARD = 300.0  # seconds; whatever takes longer hangs


def debootstrap(root: Path) -> None:
    """Make the system, with the checkout and all wheels that it needs."""
    missing = [name for name in ("debootstrap", "systemd-nspawn") if shutil.which(name) is None]
    assert not missing, "apt-get install debootstrap systemd-container"
    assert os.geteuid() == 0, "only root can make and start a system: sudo make soak"
    included = INCLUDED.replace(" ", ",")
    _run("debootstrap", "--variant=minbase", f"--include={included}", SUITE, str(root))
    if Path("/", CERTIFICATES).exists():  # of a mirror that is not the world's
        shutil.copy(Path("/", CERTIFICATES), root / CERTIFICATES)
    checkout(root / "srv/cortexd")
    wheels = (
        "python3 -m pip wheel --quiet --wheel-dir /srv/wheels pip setuptools wheel /srv/cortexd"
    )
    _run("chroot", str(root), "sh", "-c", f"PATH={PATH} {wheels}; rm -r /srv/cortexd/build")
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /srv/wheels\n")
    next((root / "srv/wheels").glob("cortexd-*")).unlink()  # they are to build it


def checkout(into: Path) -> None:
    """The repository as it is, without what git ignores."""
    into.mkdir()
    listed = "git ls-files --cached --others --exclude-standard -z"
    _run("sh", "-c", f"{listed} | tar -c --null -T - | tar -x -C '{into}'")


class Machine:
    """A system that runs. leader: its first process, as numbered here."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def sh(self, script: str, *, answer: str | None = None) -> str:
        """What the script of root prints. answer: typed on its terminal."""
        words = ["sh", "-euc", script]
        if answer is not None:
            words = ["script", "-qefc", script, "/dev/null"]
        done = subprocess.run(
            [
                *("nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p"),
                *("env", "-i", "--chdir=/srv/cortexd", f"PATH={PATH}"),
                *("HOME=/root", "LANG=C.UTF-8", *words),
            ],
            input=answer,
            stdin=None if answer else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GUARD,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def shown(self, unit: str, field: str) -> str:
        """A property of a unit, like MainPID."""
        return self.sh(f"systemctl show {unit} -p {field} --value").strip()


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """The system below `root`, from the end of its boot on."""
    address = root.with_name(f"{root.name}.notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(address))
        told.settimeout(GUARD)
        container = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
                *("--private-network", "--notify-ready=yes", "--console=pipe"),
                f"--directory={root}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": str(address)},
        )
        try:
            leader, is_ready = None, False
            while leader is None or not is_ready:
                for line in told.recv(4096).decode().splitlines():
                    name, _, value = line.partition("=")
                    leader = int(value) if name == "X_NSPAWN_LEADER_PID" else leader
                    is_ready |= line == "READY=1"
            yield Machine(root, leader)
        finally:
            container.terminate()
            container.wait(GUARD)
            address.unlink()


def _run(*words: str) -> None:
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}"
