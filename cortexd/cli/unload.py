"""`cortexd unload`: have a model gone from the nodes that have it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cortexd.cli import operators

if TYPE_CHECKING:
    import aiohttp


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "unload",
        help="unload a model, or cancel its load",
        description="Have a model unloaded from every node that has it, or from one. A load that "
        "is under way is cancelled; a model at work is left alone. Exit status 1 when it was "
        "refused.",
        epilog="example: cortexd unload Qwen/Qwen3-8B --node beast",
    )
    operators.add_model_argument(parser)
    operators.add_node_option(parser)
    operators.add_arguments(parser)
    parser.add_argument("--force", action="store_true", help="though it is at work")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is gone."""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        body = {"node": args.node, "force": args.force}
        return await operators.post(gateway, "models", args.model, "unload", body=body)

    def said(answer: dict[str, Any]) -> str:
        if not answer["nodes"]:
            return f"{args.model} was not loaded{f' on {args.node}' if args.node else ''}"
        return f"unloaded {args.model} on {', '.join(answer['nodes'])}"

    return operators.run(args, ask, said)
