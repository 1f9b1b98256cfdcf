"""Which configuration file a command reads."""

from __future__ import annotations

from pathlib import Path

SYSTEM = Path("/etc/cortexd")


def config_path(given: Path | None, name: str) -> Path:
    """`--config`, else /etc/cortexd/NAME, else ./etc/NAME (which need not exist)."""
    if given is not None:
        return given
    installed = SYSTEM / name
    return installed if installed.exists() else Path("etc") / name
