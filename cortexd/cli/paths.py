"""Which configuration file a command reads."""

from __future__ import annotations

import argparse
from pathlib import Path

SYSTEM = Path("/etc/cortexd")


def add_config_option(parser: argparse.ArgumentParser, name: str) -> None:
    """`--config FILE`, which `config_path` takes with the same NAME."""
    parser.add_argument(
        "--config",
        type=user_path,
        metavar="FILE",
        help=f"default: {SYSTEM / name}, else ./etc/{name}",
    )


def user_path(text: str) -> Path:
    """Return a path of the command line; `~` is expanded even in `--config=~/x`."""
    from cortexd.config.files import expanded

    return expanded(text)


def config_path(given: Path | None, name: str) -> Path:
    """Return `--config`, else /etc/cortexd/NAME, else ./etc/NAME. Raises NoConfiguration."""
    from cortexd.config.source import NoConfiguration

    if given is not None:
        return given
    places = [SYSTEM / name, Path("etc") / name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise NoConfiguration([SYSTEM / name, Path.cwd() / "etc" / name])
    return found
