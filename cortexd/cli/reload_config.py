"""`cortexd reload`: have a gateway read its configuration again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from cortexd.cli import operators
from cortexd.cli.screen import plain

if TYPE_CHECKING:
    import aiohttp


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "reload",
        help="have the gateway read its configuration again",
        description="Have the gateway read its configuration again, and show what changed. A "
        "configuration that can't be used changes nothing. Exit status 1 when it was refused.",
        epilog="example: cortexd reload",
    )
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return 0 if the configuration is in use."""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        return await operators.post(gateway, "reload", body={})

    return operators.run(args, ask, changes)


def changes(answer: dict[str, Any]) -> str:
    """Return what a reload changed, one line each. Raises NoGateway."""
    try:
        changed = [str(each) for each in answer["changed"]]
        later = [str(each) for each in answer["restart"]]
    except (LookupError, TypeError) as error:
        raise operators.NoGateway("what is there does not answer like a gateway") from error
    lines = ["reloaded:" if changed else "reloaded: nothing has changed"]
    lines += [f"  {plain(each)}" for each in changed]
    if later:
        lines += ["after a restart of the gateway:", *(f"  {plain(each)}" for each in later)]
    return "\n".join(lines)
