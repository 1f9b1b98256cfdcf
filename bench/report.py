"""How results are shown: what machine this is, and tables that line up."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from cortexd import __version__


def heading(title: str) -> None:
    """What follows, when and where."""
    print(f"\n{title}")
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine()}\n")


def machine() -> str:
    """The machine and what the results depend on, in one line."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else platform.machine()
    versions = [f"cortexd {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in ("uvloop", "aiohttp", "httptools")]
    if version := nginx_version():
        versions.append(f"nginx {version}")
    cores = os.cpu_count()
    return f"{processor}, {cores} cores, Linux {platform.release()}, {', '.join(versions)}"


def nginx_version() -> str | None:
    """nginx's version, if it is installed."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        return None
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return said.strip().rpartition("/")[2]


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under columns: the first to the left, numbers to the right."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and what lies around it."""
    if not values:
        return "–"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
