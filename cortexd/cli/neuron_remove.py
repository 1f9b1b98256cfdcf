"""`cortexd neuron-remove`: one node less in the gateway's configuration."""

from __future__ import annotations

import argparse
import os

from cortexd.cli.editing import APPLY, edited
from cortexd.cli.paths import add_config_option, config_path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "neuron-remove",
        help="take a node out of the configuration",
        description="Remove a [[neurons]] table from the gateway's configuration; all else in the "
        f"file stays as it is. Nothing is written that `cortexd check` would refuse. {APPLY}",
        epilog="example: cortexd neuron-remove beast",
    )
    parser.add_argument("name", metavar="NAME", help="its name in the configuration")
    add_config_option(parser, "cortex.toml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is gone; 1 when the file can't be edited. Raises ConfigError."""
    from cortexd.config.edit import remove_neuron

    path = config_path(args.config, "cortex.toml")
    return edited(
        lambda: remove_neuron(path, args.name, os.environ),
        f"{path}: {args.name} is removed. {APPLY}",
    )
