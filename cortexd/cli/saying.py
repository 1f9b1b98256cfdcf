"""What a daemon's command line says about its log, over what the configuration says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortexd.config.logs import Logging


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    """`--log-level` and `--log-format`, which `told_logging` takes."""
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="the minimum level (default: [logging] level)",
    )
    parser.add_argument(
        "--log-format",
        choices=["auto", "text", "json"],
        help="auto is text on a terminal and in the journal, else json (default: [logging] format)",
    )


def told_logging(args: argparse.Namespace, configured: Logging) -> Logging:
    """The configuration's, as far as the command line does not say otherwise."""
    from cortexd.config.logs import Logging

    return Logging(
        args.log_level or configured.level,
        args.log_format or configured.format,
    )
