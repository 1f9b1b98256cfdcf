"""`cortexd serve`: the gateway daemon."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from cortexd.cli.paths import add_config_option, config_path
from cortexd.cli.saying import add_logging_options, told_logging

if TYPE_CHECKING:
    from pathlib import Path

    from cortexd.config.current import Settings
    from cortexd.config.gateway import Config
    from cortexd.daemon.access import AccessLog

log = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "serve",
        help="run the gateway",
        description="Run the gateway: one endpoint in front of every neuron in the configuration.",
        epilog="example: cortexd serve --config /etc/cortexd/cortex.toml",
    )
    add_config_option(parser, "cortex.toml")
    add_logging_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError (78) on what can't be used."""
    from cortexd.daemon import startup

    startup.begin()
    from cortexd.daemon import logs
    from cortexd.daemon.access import AccessLog
    from cortexd.daemon.loop import run as run_loop
    from cortexd.daemon.state import state_directory

    path = config_path(args.config, "cortex.toml")
    settings = read_settings(path)
    told = told_logging(args, settings.config.logging)
    stream = logs.configure(told)
    is_said = told.level in ("debug", "info")  # its lines are of the latter
    access = AccessLog(stream, told.format) if is_said else None
    state_dir = state_directory(settings.config.gateway.state_dir, path.parent, os.environ)
    return run_loop(_serve(path, settings, access, state_dir))


def read_settings(path: Path) -> Settings:
    """The configuration and its secrets, as they are on disk. Raises ConfigError."""
    from cortexd.config.certificates import read_certificates
    from cortexd.config.check import load_gateway
    from cortexd.config.current import Settings
    from cortexd.config.secrets import read_tokens
    from cortexd.config.source import ConfigError, Mistake

    config = load_gateway(path)
    try:
        tokens = read_tokens(config, path.parent)
        return Settings(config, tokens, read_certificates(config, path.parent))
    except OSError as error:  # it was valid a moment ago
        raise ConfigError(path, [Mistake("", str(error))]) from error


def reread_settings(path: Path) -> Settings:
    """Read the settings again, and log the warnings. Raises ConfigError."""
    settings = read_settings(path)
    log_warnings(settings.config)
    return settings


def log_warnings(config: Config, listen: str | None = None) -> None:
    """Log the warnings about a configuration, one line each."""
    from cortexd.config.check_warnings import gateway_warnings
    from cortexd.config.source import spelt

    for problem in gateway_warnings(config, listen):
        log.warning("%s: %s", spelt(problem.key), problem.found)


async def _serve(
    path: Path,
    settings: Settings,
    access: AccessLog | None,
    state_dir: Path | None,
) -> int:
    from cortexd.daemon import loop, notify, signals
    from cortexd.daemon.activation import BadSocket, inherited
    from cortexd.gateway.app import Gateway
    from cortexd.gateway.listeners import CantListen, keyed, spelt
    from cortexd.proxy.listen import TooFewDescriptors

    with signals.handled(signal.SIGHUP) as came:
        try:
            gateway = Gateway(
                settings.config,
                tokens=settings.tokens,
                certificates=settings.certificates,
                access=access,
                state_dir=state_dir,
                reread=partial(reread_settings, path),
                sockets=keyed(inherited()),
            )
            await gateway.start()
        except (BadSocket, CantListen, TooFewDescriptors) as error:
            print(f"cortexd: {error}", file=sys.stderr)
            return 1
        config = settings.config
        log.info("listening on %s, %d nodes", gateway.url, len(config.neurons))
        log.info("operators: %s", gateway.admin_address or "nowhere, since admin_listen is empty")
        log_warnings(config, spelt(gateway.address))
        loop.settle()
        came.on_hangup(gateway.reload.soon)
        notify.send("READY=1")
        reporter = notify.Reporter(lambda: gateway.status)
        reporter.start()
        which = await came.wait_for_stop()
        log.info("stopping: %s", which.name)
        notify.send("STOPPING=1")
        came.hurry = gateway.hurry
        await gateway.close()
        await reporter.close()
    return 0
