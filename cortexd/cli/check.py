"""`cortexd check`: is this configuration one that the gateway can use?"""

from __future__ import annotations

import argparse
from pathlib import Path

from cortexd.cli.paths import SYSTEM, config_path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "check",
        help="check a configuration",
        description="Check the gateway's configuration, and the secrets that it names: every "
        "mistake at once. Exit status 78 when there is one.",
        epilog="example: cortexd check --config ./etc/cortex.toml",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"default: {SYSTEM / 'cortex.toml'}, else ./etc/cortex.toml",
    )
    parser.add_argument(
        "--neuron", action="store_true", help="it is the node agent's (neuron.toml)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError with all that is wrong."""
    from cortexd.config.check import load_gateway, load_neuron

    if args.neuron:
        path = config_path(args.config, "neuron.toml")
        print(f"{path}: good; {len(load_neuron(path).models)} models")
        return 0
    path = config_path(args.config, "cortex.toml")
    config = load_gateway(path)
    print(
        f"{path}: good; {len(config.neurons)} neurons, {len(config.models)} models, "
        f"{len(config.aliases)} aliases"
    )
    return 0
