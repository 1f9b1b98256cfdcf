"""`cortexd explain`: why a model is served where it is, or is not."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from cortexd.cli import operators
from cortexd.cli.screen import Cell, Screen, plain

if TYPE_CHECKING:
    import aiohttp

    from cortexd.fleet.explain import Explanation, Verdict

_HEADER: Final = ("NODE", "STATE", "MODEL", "IN FLIGHT", "SCORE", "FREE")
_STYLES: Final = {"up": "green", "down": "red", "draining": "yellow"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "explain",
        help="see where a model would be served, and why not elsewhere",
        description="Show what would become of a request for the model now, and what every node "
        "could do for it: whether it can hold it, has room, or who would have to go. Nothing is "
        "changed. Exit status 1 when no gateway answers.",
        epilog="example: cortexd explain Qwen/Qwen3-8B",
    )
    operators.add_model_argument(parser)
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when there is an explanation, whatever it is."""
    screen = Screen.of(sys.stdout)

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        return await operators.get(gateway, "explain", model=args.model)

    def said(answer: dict[str, Any]) -> str:
        from cortexd.fleet.explain import Explanation

        return drawn(operators.understood(answer, Explanation), screen)

    return operators.run(args, ask, said)


def drawn(told: Explanation, screen: Screen) -> str:
    """The decision, then a row for every node and what it has to say below."""
    name = f"{told.model} (asked for as {told.alias})" if told.alias else told.model
    parts = [f"{screen.paint(plain(name), 'bold')}\n{screen.wrapped(told.words)}"]
    if told.nodes:
        # Where it would go comes first.
        nodes = sorted(told.nodes, key=lambda one: one.node != told.node)
        rows = [row for one in nodes for row in _rows(one, one.node == told.node)]
        parts.append(screen.table(_HEADER, rows, (0,)))
    return "\n\n".join(parts)


def _rows(one: Verdict, is_chosen: bool) -> list[list[Cell | str]]:
    free = ", ".join(f"{index}: {mb:.0f}" for index, mb in sorted(one.free_mb.items()))
    return [
        [
            Cell(one.node, "bold" if is_chosen else ""),
            Cell(one.status, _STYLES[one.status]),
            one.model_status or "",
            Cell(str(one.in_flight or ""), "", True),
            Cell("" if one.score is None else f"{one.score:.2f}", "", True),
            f"{free} MiB" if free else "",
        ],
        ["", Cell(one.words)],
    ]
