"""The source distribution, built by the project's own build backend."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = (
    *(".ci", "bench", "cortexd", "docs", "etc", "packaging", "systemd", "tests"),
    *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml"),
    "setup.cfg",
)


def test_sdist_holds_the_whole_repository(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    build = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        members = [member for member in archive.getnames() if "/" in member]
    held = {member.partition("/")[2] for member in members}
    wanted = {
        str(file.relative_to(copy))
        for file in copy.rglob("*")
        if file.is_file() and "egg-info" not in str(file)
    }
    assert wanted - held == set()
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]
