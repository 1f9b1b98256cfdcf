"""`cortexd COMMAND`: finds the command and turns what goes wrong into words and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from cortexd import __version__
from cortexd.cli.commandline import Parser

# Command → its module.
COMMANDS = {
    "serve": "serve",
    "neuron": "neuron",
    "check": "check",
    "config": "config",
    "node": "node",
    "reload": "reload_config",
    "status": "status",
    "explain": "explain",
    "load": "load",
    "unload": "unload",
    "drain": "drain",
    "undrain": "undrain",
    "demo": "demo",
    "install-systemd": "install_systemd",
    "help": "help_text",
}
BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h: the service manager need not try again
INTERRUPTED = 130
READER_LEFT = 141  # as a shell has it for SIGPIPE


def parser() -> Parser:
    """The whole command line. Commands import what they need when they run, not before."""
    top = Parser(
        prog="cortexd",
        description="One OpenAI- and Anthropic-compatible endpoint in front of every GPU host.",
        epilog="exit status: 0 done; 1 it could not be done; 2 the command line is wrong; "
        "78 the configuration can't be used; 130 interrupted; 141 the reader of its output left. "
        "NO_COLOR=1 turns colours off. See it work: cortexd demo",
    )
    top.add_argument("--version", action="version", version=f"cortexd {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for module in COMMANDS.values():
        importlib.import_module(f"cortexd.cli.{module}").add_parser(commands)
    return top


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit with its status."""
    top = parser()
    args = top.parse_args(arguments)
    if not hasattr(args, "run"):
        top.print_help()
        sys.exit(0)
    from cortexd.config.source import ConfigError

    try:
        status = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = READER_LEFT
    except ConfigError as error:
        from cortexd.cli.screen import plain

        for line in str(error).split("\n"):  # a name in the file may hold anything
            print(plain(line), file=sys.stderr)
        status = BAD_CONFIGURATION
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
