"""What no key can know alone: names that must differ, references that must lead somewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cortexd.config import gateway, neuron
from cortexd.config.address import ALLOWED as AN_ADDRESS
from cortexd.config.address import parse_listen, unix_path
from cortexd.config.decode import Problem, did_you_mean, quoted
from cortexd.config.lines import KeyPath
from cortexd.config.source import load

MAX_NAME = 128  # characters of a node's name or a model's id


def load_gateway(path: Path, environ: Mapping[str, str] = os.environ) -> gateway.Config:
    """The gateway's configuration, checked; endpoints without a trailing slash.

    Raises ConfigError.
    """
    config = load(path, gateway.Config, check=_gateway_problems, environ=environ)
    neurons = tuple(
        msgspec.structs.replace(node, endpoint=node.endpoint.rstrip("/")) for node in config.neurons
    )
    return msgspec.structs.replace(config, neurons=neurons)


def load_neuron(path: Path, environ: Mapping[str, str] = os.environ) -> neuron.Config:
    """The neuron's configuration, checked. Raises ConfigError."""
    return load(path, neuron.Config, check=_neuron_problems, environ=environ)


def _gateway_problems(config: gateway.Config) -> Iterator[Problem]:
    yield from _listen(("gateway", "listen"), config.gateway.listen)
    yield from _admin_listen(config.gateway.admin_listen)
    if config.gateway.metrics_listen is not None:
        yield from _listen(("gateway", "metrics_listen"), config.gateway.metrics_listen)
    if config.gateway.max_buffered < config.gateway.max_body:
        yield Problem(
            ("gateway", "max_buffered"),
            f"found {config.gateway.max_buffered}",
            f"at least max_body ({config.gateway.max_body}), or a large body could never be taken",
        )
    yield from _names("neurons", "name", [node.name for node in config.neurons])
    yield from _names("models", "id", [profile.id for profile in config.models])
    for number, node in enumerate(config.neurons):
        yield from _endpoint(("neurons", number, "endpoint"), node.endpoint)
    nodes = {node.name for node in config.neurons}
    for number, profile in enumerate(config.models):
        for place, name in enumerate(profile.pinned_on):
            if name not in nodes:
                yield Problem(
                    ("models", number, "pinned_on", place),
                    f"no neuron is called {quoted(name)}{did_you_mean(name, nodes)}",
                    ", ".join(sorted(nodes)) or "nothing, since no neuron is configured",
                )
    yield from _aliases(config.aliases, {profile.id for profile in config.models})


def _aliases(aliases: Mapping[str, str], models: set[str]) -> Iterator[Problem]:
    for alias, model in aliases.items():
        key = ("aliases", alias)
        if alias in models:
            yield Problem(key, "a model of the catalogue has this id; choose another alias")
        elif model in aliases:
            yield Problem(key, f"{quoted(model)} is an alias itself; name the model it means")
        elif not alias.strip() or not model.strip():
            yield Problem(key, "neither an alias nor its model can be empty")


def _neuron_problems(config: neuron.Config) -> Iterator[Problem]:
    yield from _listen(("neuron", "listen"), config.neuron.listen)
    yield from _names("models", "id", [model.id for model in config.models])
    yield from _least(("neuron", "memory_mb"), config.neuron.memory_mb, 1)
    yield from _least(("paths", "read_mb_s"), config.paths.read_mb_s, 1)
    for number, model in enumerate(config.models):
        yield from _least(("models", number, "context"), model.context, 1)
        yield from _least(("models", number, "parallel"), model.parallel, 1)
        yield from _least(("models", number, "gpu_layers"), model.gpu_layers, -1)
        yield from _least(("models", number, "vram_mb"), model.vram_mb, 0)


def _least(key: KeyPath, value: int | None, least: int) -> Iterator[Problem]:
    if value is not None and value < least:
        yield Problem(key, f"found {value}", f"{least} or more")


def _listen(key: KeyPath, listen: str) -> Iterator[Problem]:
    try:
        parse_listen(listen)
    except ValueError:
        yield Problem(key, f"found {quoted(listen)}", AN_ADDRESS)


def _admin_listen(listen: str) -> Iterator[Problem]:
    try:
        if listen and unix_path(listen) is None:
            parse_listen(listen)
    except ValueError:
        allowed = f'{AN_ADDRESS}; or "unix:/path"; or "" for nowhere'
        yield Problem(("gateway", "admin_listen"), f"found {quoted(listen)}", allowed)


def _names(table: str, field: str, names: Iterable[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, name in enumerate(names):
        key = (table, number, field)
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            yield Problem(key, f"found {quoted(name)}", f"1 to {MAX_NAME} printable characters")
        elif name in seen:
            yield Problem(key, f"{quoted(name)} stands here twice; choose another")
        seen.add(name)


def _endpoint(key: KeyPath, endpoint: str) -> Iterator[Problem]:
    allowed = 'a URL like "http://beast.internal:13131"'
    found = f"found {quoted(endpoint)}"
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        yield Problem(key, f"{found} ({error})", allowed)
        return
    plain = not parts.query and not parts.fragment and parts.path in ("", "/")
    if parts.username is not None or parts.password is not None:
        # Not shown: it holds a secret.
        yield Problem(key, "found a URL with credentials; a token belongs in token_file", allowed)
    elif parts.scheme not in ("http", "https") or not host or not plain:
        yield Problem(key, found, allowed)
