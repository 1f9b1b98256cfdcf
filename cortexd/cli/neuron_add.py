"""`cortexd neuron-add`: one more node in the gateway's configuration."""

from __future__ import annotations

import argparse
import os

from cortexd.cli.editing import APPLY, edited
from cortexd.cli.paths import add_config_option, config_path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "neuron-add",
        help="add a node to the configuration",
        description="Add a [[neurons]] table to the gateway's configuration; all else in the file "
        f"stays as it is. Nothing is written that `cortexd check` would refuse. {APPLY}",
        epilog="example: cortexd neuron-add beast http://beast.internal:13131 "
        "--token-file beast.token",
    )
    parser.add_argument("name", metavar="NAME", help="how people and logs call it")
    parser.add_argument("url", metavar="URL", help="where its neuron listens")
    parser.add_argument("--token-file", metavar="FILE", help="a file with its bearer token")
    parser.add_argument(
        "--weight",
        type=float,
        help="how much work it takes in proportion to the others (default: 1)",
    )
    add_config_option(parser, "cortex.toml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is there; 1 when the file can't be edited. Raises ConfigError."""
    from cortexd.config.edit import add_neuron

    neuron = {"name": args.name, "endpoint": args.url}
    neuron |= {"token_file": args.token_file} if args.token_file is not None else {}
    neuron |= {"weight": args.weight} if args.weight is not None else {}
    path = config_path(args.config, "cortex.toml")
    return edited(
        lambda: add_neuron(path, neuron, os.environ),
        f"{path}: {args.name} is added, at {args.url}. {APPLY}",
    )
