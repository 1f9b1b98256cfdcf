"""The Makefile as a new user meets it: its help, the Python it needs, a broken environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.waiting import GUARD

ROOT = Path(__file__).parents[2]


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GUARD,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        | environ,
    )


def test_make_alone_lists_every_target_with_its_text() -> None:
    done = run("make")
    assert (done.returncode, done.stderr) == (0, "")
    targets = re.findall(r"^(\w+):.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 8
    listed = dict(re.findall(r"^make (\w+) +(.*)$", done.stdout, re.MULTILINE))
    assert listed == dict(targets)


def test_an_old_python_is_named_with_a_remedy_before_anything_is_made(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = run("make", "demo", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert f"cortexd needs Python 3.11 or newer; {old} is Python 3.9.2." in done.stderr
    assert "make demo PYTHON=python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_missing_is_named_with_a_remedy(tmp_path: Path) -> None:
    done = run("make", "test", "PYTHON=/nowhere/python3", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "There is no /nowhere/python3 here." in done.stderr
    assert "PYTHON=python3.12" in done.stderr


def test_an_incomplete_environment_is_recreated(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)  # without pip: make was interrupted
    (venv / "left-over").touch()
    done = run("packaging/venv", "create", PYTHON=sys.executable, VENV=str(venv))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Recreating {venv}, which is incomplete" in done.stdout
    assert not (venv / "left-over").exists()
    assert run(f"{venv}/bin/python", "-m", "pip", "--version").returncode == 0
    again = run("packaging/venv", "create", PYTHON="/nowhere/python3", VENV=str(venv))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to("/nowhere/python3.11")
    for marker in (".runs", ".works"):
        (venv / marker).touch()
    done = run("make", "test", "PYTHON=/nowhere/python3", f"VENV={venv}")
    assert done.returncode != 0
    assert "There is no /nowhere/python3 here." in done.stderr


def test_pip_is_one_line_unless_it_fails(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run("packaging/venv", "create", PYTHON=sys.executable, VENV=str(venv))
    done = run("packaging/venv", "install", "nothing", "--no-index", "pip", VENV=str(venv))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Installing nothing\n", "")
    failed = run("packaging/venv", "install", "it", "--no-index", "no-such-thing", VENV=str(venv))
    assert failed.returncode != 0
    assert failed.stdout == "Installing it\n"
    assert "No matching distribution found for no-such-thing" in failed.stderr
    assert "run the same make again" in failed.stderr
