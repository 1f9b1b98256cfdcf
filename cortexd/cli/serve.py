"""`cortexd serve`: the gateway daemon."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from cortexd.cli.paths import add_config_option, config_path
from cortexd.cli.saying import add_logging_options, told_logging

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

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
    """Serve until SIGTERM or SIGINT; 78 on a configuration that can't be used."""
    from cortexd.config.check import load_gateway
    from cortexd.config.secrets import read_tokens
    from cortexd.daemon import logs
    from cortexd.daemon.access import AccessLog
    from cortexd.daemon.loop import run as run_loop
    from cortexd.daemon.state import state_directory
    from cortexd.gateway.app import read_certificates

    path = config_path(args.config, "cortex.toml")
    config = load_gateway(path)
    told = told_logging(args, config.logging)
    stream = logs.configure(told)
    tokens = read_tokens(config, path.parent)
    tls = read_certificates(config, path.parent)
    state_dir = state_directory(config.gateway.state_dir, path.parent, os.environ)
    is_said = told.level in ("debug", "info")  # its lines are of the latter
    access = AccessLog(stream, told.format) if is_said else None
    return run_loop(_serve(config, tokens, tls, access, state_dir))


async def _serve(
    config: Config,
    tokens: dict[str, str],
    tls: ssl.SSLContext | None,
    access: AccessLog | None,
    state_dir: Path | None,
) -> int:
    from cortexd.daemon import loop, notify
    from cortexd.daemon.signals import wait_for_stop
    from cortexd.gateway.app import Gateway
    from cortexd.gateway.listeners import CantListen
    from cortexd.proxy.listen import TooFewDescriptors

    gateway = Gateway(config, tokens=tokens, tls=tls, access=access, state_dir=state_dir)
    try:
        await gateway.start()
    except (CantListen, TooFewDescriptors) as error:
        print(f"cortexd: {error}", file=sys.stderr)
        return 1
    log.info("listening on http://%s:%d, %d nodes", *gateway.address, len(config.neurons))
    log.info("operators: %s", gateway.admin_address or "nowhere, since admin_listen is empty")
    loop.settle()
    notify.send("READY=1")
    signal = await wait_for_stop()
    log.info("stopping: %s", signal.name)
    notify.send("STOPPING=1")
    await gateway.close()
    return 0
