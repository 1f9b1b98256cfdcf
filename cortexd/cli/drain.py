"""`cortexd drain`: take a node out of service."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cortexd.cli import operators

if TYPE_CHECKING:
    import aiohttp


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "drain",
        help="take a node out of service",
        description="Send a node no new work; what runs there goes on to its end. It stays so, "
        "over restarts of the gateway too, until it is undrained. Exit status 1 when it was "
        "refused.",
        epilog="example: cortexd drain beast",
    )
    operators.add_node_argument(parser)
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is."""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        return await operators.post(gateway, "nodes", args.name, "drain", body={})

    def said(answer: dict[str, Any]) -> str:
        left = answer["in_flight"]
        rest = f"{left} request{'s' * (left > 1)} still run{'s' * (left == 1)} there"
        text = f"drained {args.name}: it gets no new work; {rest if left else 'nothing runs there'}"
        return text + operators.note_line(answer)

    return operators.run(args, ask, said)
