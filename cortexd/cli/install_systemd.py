"""`cortexd install-systemd`: make a service of a cortexd that came by pip or pipx."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cortexd.cli import units
from cortexd.cli.paths import user_path

_DOES = {
    "new": ("write", ""),
    "same": ("leave", "it is as it should be"),
    "replaced": ("replace", "it is of another version"),
    "kept": ("keep", "it is yours: nothing in it is changed"),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "install-systemd",
        help="make a service of it, after pip or pipx",
        description="Write units, a first configuration, and what makes the user cortexd; then "
        "have systemd read them. The plan is shown first. Nothing is started, and a configuration "
        "that is there stays as it is. Exit status 1 when nothing was done.",
        epilog="example: cortexd install-systemd --socket",
    )
    parser.add_argument("--neuron", action="store_true", help="the node agent's files, too")
    parser.add_argument(
        "--socket", action="store_true", help="cortexd.socket, too: the port is held over restarts"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and leave")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--prefix",
        type=user_path,
        metavar="DIR",
        help="write below DIR, as for an image, and run nothing",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is done, or was before."""
    root = args.prefix or Path("/")
    choice = units.Choice(neuron=args.neuron, socket=args.socket)
    try:
        return _go(args, root, choice)
    except OSError as error:
        print(
            f"install-systemd: {error}; what stands before it in the plan is done", file=sys.stderr
        )
        return 1


def _go(args: argparse.Namespace, root: Path, choice: units.Choice) -> int:
    if unit := units.packaged(root):
        print(
            f"This host has cortexd as a package, with {unit}: nothing is left to install.\n"
            "Go on with: systemctl enable --now cortexd",
            file=sys.stderr,
        )
        return 1
    command, needed = _installed()
    # Before the plan, which is useless if the units can't start. An image has other permissions.
    if trouble := units.hidden(needed) or (None if args.prefix else units.unreadable(needed)):
        print(f"Nothing was changed: {_elsewhere(trouble)}", file=sys.stderr)
        return 1
    steps = [] if args.prefix else units.commands(is_running=Path("/run/systemd/system").is_dir())
    planned = [(file, units.fate(file, root)) for file in units.files(command, choice)]
    print(_plan(planned, steps, root, command))
    if args.dry_run:
        return 0
    if refusal := None if args.prefix else _refusal(command, steps):
        print(f"\nNothing was changed: {refusal}", file=sys.stderr)
        return 1
    if not args.yes and not _agreed():
        print("\nNothing was changed.", file=sys.stderr)
        return 1
    for file, fate in planned:
        if fate in {"new", "replaced"}:
            _write(units.below(root, file.path), file)
    for step in steps:
        if failed := subprocess.run(step, check=False).returncode:  # noqa: S603 - our own
            print(
                f"install-systemd: `{' '.join(step)}` ended with status {failed}. The files are "
                "there; put right what it says and call this again.",
                file=sys.stderr,
            )
            return 1
    print(_next(choice))
    return 0


def _installed() -> tuple[str, list[Path]]:
    """What starts this very cortexd, and the files that it is made of."""
    import cortexd

    script = Path(sysconfig.get_path("scripts"), "cortexd")
    command = str(script) if script.exists() else f"{sys.executable} -m cortexd"
    needed = [Path(sys.executable), Path(sys.base_prefix), Path(cortexd.__file__)]
    return command, [*needed, script] if script.exists() else needed


def _elsewhere(trouble: str) -> str:
    import cortexd

    checkout = Path(cortexd.__file__).parents[1]
    source = checkout if (checkout / "setup.cfg").exists() else "cortexd"
    return (
        f"{trouble}, so it could not start. Install cortexd where every user can read it, with a "
        "Python that is not in a home either:\n"
        "  sudo python3 -m venv /opt/cortexd\n"
        f"  sudo /opt/cortexd/bin/pip install {source}\n"
        f"  sudo /opt/cortexd/bin/cortexd {' '.join(sys.argv[1:])}"
    )


def _refusal(command: str, steps: list[list[str]]) -> str | None:
    missing = [step[0] for step in steps if shutil.which(step[0]) is None]
    if missing:
        return (
            f"{missing[0]} is not on this host, so systemd is not either. "
            "Run `cortexd serve` under the supervisor that you have."
        )
    if os.geteuid() != 0:
        words = " ".join([*command.split(), *sys.argv[1:]])
        return f"this takes root. Call it again as: sudo {words}"
    return None


def _plan(
    planned: list[tuple[units.File, units.Fate]], steps: list[list[str]], root: Path, command: str
) -> str:
    lines = ["The plan:", ""]
    for file, fate in planned:
        verb, why = _DOES[fate]
        lines.append(f"  {verb:<8} {units.below(root, file.path)}{f'  ({why})' if why else ''}")
    lines += [f"  {'run':<8} {' '.join(step)}" for step in steps]
    lines += [
        "",
        f"The service is `{command} serve`, as the user {units.USER}. Nothing is started.",
    ]
    return "\n".join(lines)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print("\nThere is no terminal to ask on: call it again with --yes.", file=sys.stderr)
        return False
    print("\nGo on? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _write(path: Path, file: units.File) -> None:
    """Whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode), "w") as out:
        out.write(file.content)
        os.fchmod(out.fileno(), file.mode)  # whatever the umask says
    new.replace(path)


def _next(choice: units.Choice) -> str:
    lines = [
        "",
        "Done. Next:",
        "",
        f"  edit {units.ETC / 'cortex.toml'}: your neurons and models",
        f"  cortexd check --config {units.ETC / 'cortex.toml'}",
        f"  systemctl enable --now {'cortexd.socket ' if choice.socket else ''}cortexd",
        "  systemctl status cortexd",
    ]
    if choice.neuron:
        lines += [
            "",
            f"On a GPU host, edit {units.ETC / 'neuron.toml'}, then",
            "",
            "  systemctl enable --now cortexd-neuron",
        ]
    return "\n".join([*lines, "", "After an upgrade: systemctl restart what runs."])
