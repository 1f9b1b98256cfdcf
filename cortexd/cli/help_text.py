"""`cortexd help`: the help of a command."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "help",
        help="show the help of a command",
        description="Show the help of a command, as its --help does; without one, list them all.",
        epilog="example: cortexd help node add",
    )
    parser.add_argument("command", metavar="COMMAND", nargs="*", help="its name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit with the status of `--help`, or 2 for a command that does not exist."""
    from cortexd.cli.main import parser

    parser().parse_args([*args.command, "--help"])
    return 0
