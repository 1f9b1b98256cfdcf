"""`cortexd config show`: what is in effect, and where each value came from."""

from __future__ import annotations

import argparse
import io
import os
import sys

from cortexd.cli.paths import add_config_option, config_path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "config",
        help="show the configuration that is in effect",
        description="Look at the configuration.",
        epilog="example: cortexd config show",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="every key, and where its value came from",
        description="Print the configuration as the gateway would use it now: every key, its value "
        "as TOML, and the line or the environment variable that it came from. Secrets are masked. "
        "Exit status 78 when it can't be used.",
        epilog="example: cortexd config show --json",
    )
    add_config_option(show, "cortex.toml")
    show.add_argument("--neuron", action="store_true", help="it is the node agent's (neuron.toml)")
    show.add_argument("--json", action="store_true", help="print a list of keys as JSON")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError with all that is wrong."""
    import json

    from cortexd.config.check import read_gateway, read_neuron
    from cortexd.config.show import as_json, as_toml, settings

    if isinstance(sys.stdout, io.TextIOWrapper):  # what it can't encode is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    path = config_path(args.config, "neuron.toml" if args.neuron else "cortex.toml")
    found = settings(
        read_neuron(path, with_files=False)
        if args.neuron
        else read_gateway(path, with_files=False),
        os.environ,
    )
    print(json.dumps(as_json(found)) if args.json else as_toml(found), end="\n" * args.json)
    return 0
