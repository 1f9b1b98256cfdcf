"""Warnings about a configuration that is usable."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from cortexd.config import gateway, neuron
from cortexd.config.address import parse_listen
from cortexd.config.decode import Problem, did_you_mean, quoted


def gateway_warnings(config: gateway.Config, listen: str | None = None) -> Iterator[Problem]:
    """Yield the warnings about a gateway's valid configuration.

    listen: where it listens, if that is not where the configuration says.
    """
    where = config.gateway.listen if listen is None else listen
    if not _is_loopback(where):
        yield Problem(
            ("gateway", "listen"),
            f"anyone who can reach {where} can use every model, since cortexd has no "
            "authentication of its own; listen on 127.0.0.1, or allow only your clients by a "
            "firewall or an authenticating reverse proxy",
        )
    admin = config.gateway.admin_listen
    if not _is_loopback(admin):
        yield Problem(
            ("gateway", "admin_listen"),
            f"anyone who can reach {admin} can load and unload models, drain nodes and reload the "
            "configuration, since cortexd has no authentication of its own; listen on 127.0.0.1 or "
            "on a socket file (unix:/path), or allow only operators by a firewall",
        )
    for number, profile in enumerate(config.models):
        if profile.harness not in neuron.HARNESSES:
            hint = did_you_mean(profile.harness, neuron.HARNESSES)
            yield Problem(
                ("models", number, "harness"),
                f"{quoted(profile.harness)} is not a harness of cortexd's own neuron "
                f"({', '.join(neuron.HARNESSES)}){hint or '; only a node that has it can load it'}",
            )


def alias_warnings(config: gateway.Config) -> Iterator[Problem]:
    """Yield the warnings about aliases of models that the catalogue does not list.

    Not for a gateway that runs: it knows which models its nodes have.
    """
    models = [profile.id for profile in config.models]
    for alias, model in config.aliases.items():
        if model not in models:
            yield Problem(
                ("aliases", alias),
                f"no [[models]] entry is called {quoted(model)}{did_you_mean(model, models)}; "
                "requests for the alias are refused unless a node has the model by itself",
            )


def neuron_warnings(config: neuron.Config) -> Iterator[Problem]:
    """Yield the warnings about a node agent's valid configuration."""
    where = config.neuron.listen
    if config.neuron.token_file is None and not _is_loopback(where):
        yield Problem(
            ("neuron", "listen"),
            f"anyone who can reach {where} can load, unload and use models on this host, because "
            "no token_file is set; set [neuron] token_file (and the same token in the gateway's "
            "[[neurons]] entry), or listen on 127.0.0.1",
        )


def _is_loopback(listen: str) -> bool:
    """Return whether only this machine reaches it: a loopback address, or a socket file."""
    try:
        host, _ = parse_listen(listen)
    except ValueError:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
