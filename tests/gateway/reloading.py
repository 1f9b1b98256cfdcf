"""Another configuration for a gateway that runs in this process."""

from __future__ import annotations

from typing import Any

import msgspec

from cortexd.config.current import Settings
from cortexd.config.gateway import Gateway, Neuron
from cortexd.gateway.reload import Reloaded
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet


def is_on_disk(fleet: Fleet, tokens: dict[str, str] | None = None, **tables: Any) -> None:
    """What the next reload reads: as it is now, but for these."""
    current = fleet.gateway._current
    config = msgspec.structs.replace(current.config, **tables)
    tokens = dict(current.tokens) if tokens is None else tokens
    settings = Settings(config, tokens, current.certificates)
    fleet.gateway.reload._read = lambda: settings


async def reloaded(fleet: Fleet, tokens: dict[str, str] | None = None, **tables: Any) -> Reloaded:
    """Reload with these changes."""
    is_on_disk(fleet, tokens, **tables)
    return await fleet.gateway.reload.reload()


def neurons(**named: FakeNeuron) -> tuple[Neuron, ...]:
    return tuple(Neuron(name, neuron.url) for name, neuron in named.items())


def gateway(fleet: Fleet, **keys: Any) -> Gateway:
    """The table of that name as it is now, but for these keys."""
    return msgspec.structs.replace(fleet.gateway._current.config.gateway, **keys)
