"""The composition root of the node agent: builds it from its configuration, starts and ends it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cortexd.config.address import parse_listen
from cortexd.config.check_warnings import neuron_warnings
from cortexd.config.files import located
from cortexd.config.neuron import Config
from cortexd.config.secrets import SecretError, read_secret
from cortexd.daemon.resolver import Resolver
from cortexd.neuron.api import Api
from cortexd.neuron.devices import Devices
from cortexd.neuron.filelist import FileList
from cortexd.neuron.harness import Harness
from cortexd.neuron.harnesses.llamacpp import LlamaCpp
from cortexd.neuron.residency import Residency
from cortexd.proxy.exchange import Exchange
from cortexd.proxy.listen import Listener, TooFewDescriptors, connection_cap, listen
from cortexd.proxy.server import DoorServer

log = logging.getLogger(__name__)

_LAST_WORDS: Final = 2.0  # seconds for answers that are still being written when engines are gone


class StartError(Exception):
    """The neuron can't start as it is configured; the message says what to change."""


class Neuron:
    """One node agent. `start` opens its door, `close` ends it and every engine.

    base: where relative paths in the configuration start, the directory of its file.
    harnesses: name → harness; None: the ones that are shipped.
    """

    def __init__(
        self,
        config: Config,
        *,
        base: Path = Path(),
        harnesses: Mapping[str, Harness] | None = None,
    ) -> None:
        self._config = config
        self._base = base
        self._harnesses = harnesses
        self._listener: Listener | None = None
        self.address: tuple[str, int] = ("", 0)  # what it is bound to

    @property
    def url(self) -> str:
        """Where it is reached from this host."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self) -> None:
        """Look at the host, open the listener. Raises StartError."""
        config = self._config
        host, port = _address(config.neuron.listen)
        token = await asyncio.to_thread(self._read_token)
        harnesses = self._harnesses
        if harnesses is None:
            given = config.paths.logs
            logs = _default_logs() if given is None else located(self._base, given)
            harnesses = {"llamacpp": LlamaCpp(logs, config.paths.read_mb_s)}
        _check_models(config, harnesses)
        for warning in neuron_warnings(config):
            log.warning("%s", warning.found)
        self._devices = Devices(harnesses, config.neuron.memory_mb)
        await self._devices.survey()
        if self._devices.unavailable is not None:
            log.warning("nothing can load here: %s", self._devices.unavailable)
        directories = [located(self._base, each) for each in config.paths.models]
        self._residency = Residency(
            config.models,
            harnesses,
            self._devices,
            directories=directories,
            load_timeout=config.neuron.load_timeout,
        )
        self._files = FileList(directories, config.models)
        await self._files.start()
        self._resolver = Resolver()
        self._exchange = Exchange(self._resolver)
        self._api = api = Api(
            self._residency, self._devices, self._exchange, self._files, config.neuron, token
        )
        try:
            server = DoorServer(
                api.handle,
                api.refuse,
                max_body=config.neuron.max_body,
                max_connections=connection_cap(),
            )
            self._listener = await listen(server, host, port, shutdown_timeout=_LAST_WORDS)
        except TooFewDescriptors as error:
            await self.close()
            raise StartError(str(error)) from error
        except OSError as error:
            await self.close()
            raise StartError(
                f"can't listen on {config.neuron.listen}: {error.strerror or error}; "
                "end what listens there or change [neuron] listen"
            ) from error
        self.address = self._listener.address
        api.endpoint = f"http://localhost:{self.address[1]}"

    async def close(self) -> None:
        """Stop accepting, let running requests end for a few seconds, end every engine."""
        if self._listener is not None:
            await self._listener.stop()
        await self._files.close()
        await self._residency.close()
        if self._listener is not None:
            await self._listener.close()
        await self._exchange.close()
        await self._resolver.close()
        await self._devices.close()

    def _read_token(self) -> str | None:
        file = self._config.neuron.token_file
        if file is None:
            return None
        try:
            return read_secret(file, self._base)
        except SecretError as error:
            raise StartError(f"[neuron] token_file: {error}") from error


def _address(listen: str) -> tuple[str, int]:
    try:
        return parse_listen(listen)
    except ValueError as error:
        raise StartError(f"[neuron] listen = {listen!r}: {error}") from error


def _check_models(config: Config, harnesses: Mapping[str, Harness]) -> None:
    seen = set()
    for model in config.models:
        if model.id in seen:
            raise StartError(f"[[models]] lists {model.id!r} twice; give one another id")
        if model.harness not in harnesses:
            raise StartError(
                f"[[models]] {model.id!r}: there is no harness {model.harness!r}, "
                f"only {', '.join(harnesses)}"
            )
        seen.add(model.id)


def _default_logs() -> Path:
    """Where systemd wants logs, else where the XDG directories put state."""
    if given := os.environ.get("LOGS_DIRECTORY"):
        return Path(given) / "engines"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "cortexd/engines"
