"""`cortexd check`: is this configuration one that the gateway can use?"""

from __future__ import annotations

import argparse

from cortexd.cli.paths import add_config_option, config_path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "check",
        help="check a configuration",
        description="Check the gateway's configuration; every mistake at once. Exit status 78 when "
        "there is one.",
        epilog="example: cortexd check --config ./etc/cortex.toml",
    )
    add_config_option(parser, "cortex.toml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError with all that is wrong."""
    from cortexd.config.check import load_gateway

    path = config_path(args.config, "cortex.toml")
    config = load_gateway(path)
    print(
        f"{path}: good; {len(config.neurons)} neurons, {len(config.models)} models, "
        f"{len(config.aliases)} aliases"
    )
    return 0
