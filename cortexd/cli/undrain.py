"""`cortexd undrain`: put a node back into service."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cortexd.cli import operators

if TYPE_CHECKING:
    import aiohttp


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "undrain",
        help="put a node back into service",
        description="Send a node work again that was drained. Exit status 1 when it was refused.",
        epilog="example: cortexd undrain beast",
    )
    operators.add_node_argument(parser)
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is."""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        return await operators.post(gateway, "nodes", args.name, "undrain", body={})

    return operators.run(
        args,
        ask,
        lambda answer: f"undrained {args.name}: it is in service{operators.note_line(answer)}",
    )
