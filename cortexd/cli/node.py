"""`cortexd node add|remove|list`: the nodes in the gateway's configuration."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from cortexd.cli.editing import APPLY, edited
from cortexd.cli.paths import add_config_option, config_path, user_path
from cortexd.cli.screen import Cell, Screen


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "node",
        help="add, remove or list the nodes of the configuration",
        description="Edit the [[neurons]] tables of the gateway's configuration; all else in the "
        f"file stays as it is. Nothing is written that `cortexd check` would refuse. {APPLY}",
        epilog="example: cortexd node add beast http://beast.internal:13131",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_add(actions)
    _add_remove(actions)
    _add_list(actions)


def _add_add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "add",
        help="add a node",
        description="Ask the node what it is, and add a [[neurons]] table for it. Exit status 1 "
        f"when it does not answer as a node; then nothing is written. {APPLY}",
        epilog="example: cortexd node add beast http://beast.internal:13131 "
        "--token-file beast.token",
    )
    parser.add_argument("name", metavar="NAME", help="its name in logs, metrics and commands")
    parser.add_argument("url", metavar="URL", help="where its node agent listens")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file with its bearer token, relative to the current directory",
    )
    parser.add_argument(
        "--ca-file",
        metavar="FILE",
        help="certificates to trust for it besides the system's, relative to the current directory",
    )
    parser.add_argument(
        "--weight",
        type=float,
        help="its share of the requests in proportion to the others (default: 1)",
    )
    parser.add_argument("--no-probe", action="store_true", help="do not ask the node first")
    add_config_option(parser, "cortex.toml")
    parser.set_defaults(run=add)


def _add_remove(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "remove",
        help="remove a node",
        description=f"Remove the node's [[neurons]] table. {APPLY}",
        epilog="example: cortexd node remove beast",
    )
    parser.add_argument("name", metavar="NAME", help="its name in the configuration")
    add_config_option(parser, "cortex.toml")
    parser.set_defaults(run=remove)


def _add_list(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "list",
        help="list the configured nodes",
        description="List the nodes of the configuration. `cortexd status` shows how they are.",
        epilog="example: cortexd node list",
    )
    add_config_option(parser, "cortex.toml")
    parser.add_argument("--json", action="store_true", help="print a list of nodes as JSON")
    parser.set_defaults(run=show)


def add(args: argparse.Namespace) -> int:
    """Return 0 if the node was added; 1 if it does not answer or the file can't be edited.

    Raises ConfigError.
    """
    from cortexd.config import gateway
    from cortexd.config.edit import CantEdit, add_neuron
    from cortexd.nodes.client import NodeError

    path = config_path(args.config, "cortex.toml")
    neuron = {"name": args.name, "endpoint": args.url}
    neuron |= {"weight": args.weight} if args.weight is not None else {}
    if args.token_file is not None:
        neuron["token_file"] = _seen_from(path, user_path(args.token_file))
    if args.ca_file is not None:
        neuron["ca_file"] = _seen_from(path, user_path(args.ca_file))
    found = ""

    def probe(config: gateway.Config) -> None:
        from cortexd.cli.probe import probe

        nonlocal found
        node = next(each for each in config.neurons if each.name == args.name)
        try:
            found = f"; it has {probe(node, config, path.parent)}"
        except NodeError as error:
            raise CantEdit(f"{error}\nTo add it nevertheless: --no-probe") from error

    return edited(
        lambda: add_neuron(path, neuron, os.environ, None if args.no_probe else probe),
        lambda: f"{path}: {args.name} is added, at {args.url}{found}. {APPLY}",
    )


def remove(args: argparse.Namespace) -> int:
    """Return 0 if the node was removed; 1 if the file can't be edited. Raises ConfigError."""
    from cortexd.config.edit import remove_neuron

    path = config_path(args.config, "cortex.toml")
    return edited(
        lambda: remove_neuron(path, args.name, os.environ),
        lambda: f"{path}: {args.name} is removed. {APPLY}",
    )


def show(args: argparse.Namespace) -> int:
    """Return 0. Raises ConfigError."""
    from cortexd.config.check import load_gateway

    path = config_path(args.config, "cortex.toml")
    nodes = load_gateway(path, with_files=False).neurons
    if args.json:
        import msgspec

        print(json.dumps(msgspec.to_builtins(nodes)))
    elif nodes:
        rows: list[list[Cell | str]] = [
            [
                node.name,
                node.endpoint,
                Cell(f"{node.weight:g}", "", to_the_right=True),
                node.token_file or "",
            ]
            for node in nodes
        ]
        header = ("NODE", "ENDPOINT", "WEIGHT", "TOKEN FILE")
        print(Screen.of(sys.stdout).table(header, rows, (0, 1, 3)))
    else:
        print(f"{path} has no nodes. Add one with: cortexd node add NAME URL")
    return 0


def _seen_from(config: Path, file: Path) -> str:
    """Return a file of the command line as the configuration spells it.

    That is its name if it lies beside the configuration, where credentials of that name count, too.
    """
    file = Path.cwd() / file
    is_beside = file.parent.resolve() == config.parent.resolve()
    return file.name if is_beside else str(file)
