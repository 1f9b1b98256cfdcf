"""`cortexd check`: is this configuration one that the gateway can use?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cortexd.cli.paths import add_config_option, config_path
from cortexd.cli.screen import counted, plain


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "check",
        help="check a configuration",
        description="Check the gateway's configuration, and the files that it names: every "
        "mistake at once. Exit status 78 if there is one; warnings do not change the status.",
        epilog="example: cortexd check --config ./etc/cortex.toml",
    )
    add_config_option(parser, "cortex.toml")
    parser.add_argument(
        "--neuron", action="store_true", help="it is the node agent's (neuron.toml)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError with all that is wrong."""
    from cortexd.config.check import read_gateway, read_neuron
    from cortexd.config.check_warnings import (
        alias_warnings,
        gateway_warnings,
        neuron_warnings,
    )

    if args.neuron:
        path = config_path(args.config, "neuron.toml")
        agent, source = read_neuron(path, with_directories=True)
        warnings = source.lines(neuron_warnings(agent))
        for line in warnings:
            print(f"warning: {plain(line)}", file=sys.stderr)
        print(f"{path}: {_verdict(warnings)}; {counted(len(agent.models), 'model')}")
        return 0
    path = config_path(args.config, "cortex.toml")
    config, source = read_gateway(path, with_directories=True)
    warnings = source.lines([*gateway_warnings(config), *alias_warnings(config)])
    for line in warnings:
        print(f"warning: {plain(line)}", file=sys.stderr)
    print(
        f"{path}: {_verdict(warnings)}; {counted(len(config.neurons), 'neuron')}, "
        f"{counted(len(config.models), 'model')}, {counted(len(config.aliases), 'alias', 'es')}"
    )
    return 0


def _verdict(warnings: Sequence[str]) -> str:
    return "usable, but see the warning" if warnings else "good"
