"""What makes a service of an installed cortexd: which files go where, and what is run then.

It looks at what is there and says what would happen; it changes nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final, Literal, NamedTuple

ETC: Final = Path("/etc/cortexd")
UNITS: Final = Path("/etc/systemd/system")
USER: Final = "cortexd"

SHIPPED_COMMAND: Final = "/usr/bin/cortexd"  # in the units as they are shipped
MARK: Final = "# Written by `cortexd install-systemd`, which replaces it when it is called again.\n"
# What the units' ProtectHome and PrivateTmp hide from the service.
HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
HIDDEN: Final = (*HOMES, Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - none is used

Fate = Literal["new", "same", "replaced", "kept"]


class File(NamedTuple):
    """A file of the plan. path: absolute on the host. is_yours: written once, never again."""

    path: Path
    content: str
    mode: int = 0o644
    is_yours: bool = False


class Choice(NamedTuple):
    """What was asked for, besides the gateway."""

    neuron: bool = False
    socket: bool = False


def shipped(name: str) -> str:
    """A file that comes with cortexd, like "etc/cortex.toml"."""
    return (resources.files("cortexd") / "shipped" / name).read_text("utf-8")


def files(command: str, choice: Choice) -> list[File]:
    """Every file that makes the service. `command` starts cortexd: a path, or more words."""
    units = ["cortexd.service"]
    configurations = ["cortex.toml"]
    if choice.neuron:
        units.append("cortexd-neuron.service")
        configurations.append("neuron.toml")
    if choice.socket:
        units.append("cortexd.socket")
    planned = [
        File(ETC / name, shipped(f"etc/{name}"), mode=0o640, is_yours=True)
        for name in configurations
    ]
    for name in units:
        unit = shipped(f"systemd/{name}").replace(f"={SHIPPED_COMMAND} ", f"={command} ")
        planned.append(File(UNITS / name, MARK + unit))
    for kind in ("sysusers", "tmpfiles"):
        text = shipped(f"systemd/cortexd.{kind}")
        planned.append(File(Path(f"/etc/{kind}.d/cortexd.conf"), MARK + text))
    return planned


def fate(file: File, root: Path) -> Fate:
    """What becomes of the file of that name below `root`. Raises OSError."""
    try:
        found = below(root, file.path).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return "new"
    if found == file.content:
        return "same"
    return "replaced" if found.startswith(MARK) and not file.is_yours else "kept"


def commands(*, is_running: bool) -> list[list[str]]:
    """What is run when the files are there. is_running: systemd is the manager of this host."""
    steps = [
        ["systemd-sysusers", "/etc/sysusers.d/cortexd.conf"],
        ["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/cortexd.conf"],
    ]
    if is_running:
        steps.append(["systemctl", "daemon-reload"])
    return steps


def packaged(root: Path) -> Path | None:
    """The gateway's unit as a package of the distribution has put it there."""
    for folder in ("usr/lib/systemd/system", "lib/systemd/system"):
        unit = root / folder / "cortexd.service"
        if unit.exists():
            return unit
    return None


def hidden(paths: Sequence[Path]) -> str | None:
    """Return why a service can't see a file at `paths`; None: it sees all of them.

    Both a link and its target count: a virtual environment's Python is a link.
    """
    for path in paths:
        for place in (path, path.resolve()):
            if above := next((each for each in HIDDEN if place.is_relative_to(each)), None):
                setting = "ProtectHome=" if above in HOMES else "PrivateTmp="
                return f"{place} lies below {above}, which the service can't see ({setting})"
    return None


def unreadable(paths: Sequence[Path]) -> str | None:
    """Return why a service may not read a file at `paths`; None: it may. Raises OSError."""
    for path in paths:
        real = path.resolve()
        for step in (real, *real.parents):
            mode = step.stat().st_mode
            needed = stat.S_IXOTH if step.is_dir() else stat.S_IROTH
            if not mode & needed:
                return f"the user {USER} may not read {step}"
    return None


def below(root: Path, path: Path) -> Path:
    """Where an absolute path of the host lies when the host's root is `root`."""
    return root / path.relative_to("/")
