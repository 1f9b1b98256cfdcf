"""`cortexd COMMAND`: finds the command and turns what goes wrong into words and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import NoReturn

from cortexd import __version__

COMMANDS = (
    "serve",
    "neuron",
    "check",
    "config",
    "neuron-add",
    "neuron-remove",
    "status",
    "explain",
    "load",
    "unload",
    "drain",
    "undrain",
    "demo",
    "install-systemd",
)
BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h: the service manager need not try again
INTERRUPTED = 130
READER_LEFT = 141  # as a shell has it for SIGPIPE


def parser() -> argparse.ArgumentParser:
    """The whole command line. Commands import what they need when they run, not before."""
    top = argparse.ArgumentParser(
        prog="cortexd",
        description="One OpenAI- and Anthropic-compatible endpoint in front of every GPU host.",
        epilog="exit status: 0 done; 1 it could not be done; 2 the command line is wrong; "
        "78 the configuration can't be used; 130 interrupted; 141 the reader of its output left. "
        "NO_COLOR=1 turns colours off. See it work: cortexd demo",
    )
    top.add_argument("--version", action="version", version=f"cortexd {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"cortexd.cli.{name.replace('-', '_')}").add_parser(commands)
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
