"""`cortexd neuron`: the node agent."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cortexd.cli.paths import add_config_option, config_path
from cortexd.cli.saying import add_logging_options, told_logging

if TYPE_CHECKING:
    from cortexd.config.neuron import Config

log = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "neuron",
        help="run the node agent of this host",
        description="Run the node agent: it loads models on this host and serves them.",
        epilog="example: cortexd neuron --config /etc/cortexd/neuron.toml",
    )
    add_config_option(parser, "neuron.toml")
    add_logging_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 1 when it can't start. Raises ConfigError."""
    from cortexd.daemon import startup

    startup.begin()
    from cortexd.config.check import read_neuron
    from cortexd.config.check_files import neuron_files
    from cortexd.daemon import logs
    from cortexd.daemon.loop import run as run_loop

    path = config_path(args.config, "neuron.toml")
    config, source = read_neuron(path)
    logs.configure(told_logging(args, config.logging))
    for line in source.lines(neuron_files(config, source)):
        log.warning("%s", line)
    # Engines have another working directory.
    return run_loop(_serve(config, path.parent.absolute()))


async def _serve(config: Config, base: Path) -> int:
    from cortexd.daemon import loop, notify
    from cortexd.daemon.signals import wait_for_stop
    from cortexd.neuron.app import Neuron, StartError

    neuron = Neuron(config, base=base)
    try:
        await neuron.start()
    except StartError as error:
        print(f"cortexd neuron: {error}", file=sys.stderr)
        return 1
    log.info("listening on %s, %d models configured", neuron.url, len(config.models))
    loop.settle()
    notify.send("READY=1")
    signal = await wait_for_stop()
    log.info("stopping: %s", signal.name)
    notify.send("STOPPING=1")
    await neuron.close()
    return 0
