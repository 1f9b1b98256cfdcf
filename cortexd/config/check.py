"""What no key can know alone: names that must differ, references that must lead somewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cortexd.config import gateway, neuron
from cortexd.config.address import ALLOWED as AN_ADDRESS
from cortexd.config.address import is_host, overlap, parse_listen, unix_path
from cortexd.config.catalogue import Profile
from cortexd.config.check_files import gateway_files, neuron_files
from cortexd.config.decode import Problem, did_you_mean, quoted
from cortexd.config.files import located, reason
from cortexd.config.lines import KeyPath
from cortexd.config.secrets import SecretError, read_secret, read_token, variable
from cortexd.config.source import Loaded, Source, load

MAX_NAME = 128  # characters of a node's name or a model's id

# Applications with an embedded browser have schemes of their own, and may have any host of these.
_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?:[0-9]{1,5}|\*))?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://(?:\*|[a-z0-9._-]*(?::(?:[0-9]{1,5}|\*))?)"
)


def load_gateway(
    path: Path, environ: Mapping[str, str] = os.environ, *, with_files: bool = True
) -> gateway.Config:
    """The gateway's configuration, checked; endpoints without a trailing slash.

    with_files: False for who may not read the secrets and certificates that it names, or needs
    not. Raises ConfigError.
    """
    config = read_gateway(path, environ, with_files=with_files).value
    neurons = tuple(
        msgspec.structs.replace(node, endpoint=node.endpoint.rstrip("/")) for node in config.neurons
    )
    return msgspec.structs.replace(config, neurons=neurons)


def read_gateway(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    with_files: bool = True,
    with_directories: bool = False,
) -> Loaded[gateway.Config]:
    """Return the configuration, and where each value came from.

    with_directories: also report directories that don't exist, without which a gateway starts.
    Raises ConfigError.
    """

    def check(config: gateway.Config, source: Source) -> Iterator[Problem]:
        yield from _gateway_problems(config, source)
        if with_files:
            yield from _tokens(config, path.parent, environ)
            yield from _certificates(config, path.parent)
        if with_directories:
            yield from gateway_files(config, source)

    return load(
        path,
        gateway.Config,
        check=check,
        environ=environ,
        further=("models", ("catalogue", "path")),
    )


def read_neuron(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    with_files: bool = True,
    with_directories: bool = False,
) -> Loaded[neuron.Config]:
    """Return the configuration, and where each value came from.

    with_directories: also report directories and model files that don't exist, without which a
    neuron starts. Raises ConfigError.
    """

    def check(config: neuron.Config, source: Source) -> Iterator[Problem]:
        yield from _neuron_problems(config, source)
        file = config.neuron.token_file
        if with_files and file is not None:
            try:
                read_secret(file, path.parent, environ)
            except SecretError as error:
                yield Problem(("neuron", "token_file"), str(error))
        if with_directories:
            yield from neuron_files(config, source)

    return load(path, neuron.Config, check=check, environ=environ)


def _gateway_problems(config: gateway.Config, source: Source) -> Iterator[Problem]:
    yield from _listeners(config.gateway)
    yield from _body_limits("gateway", config.gateway)
    for place, origin in enumerate(config.gateway.cors_origins):
        yield from _origin(("gateway", "cors_origins", place), origin)
    for place, host in enumerate(config.security.allowed_inference_hosts):
        yield from _host(("security", "allowed_inference_hosts", place), host)
    for place, host in enumerate(config.security.allowed_hosts):
        if host != "*":
            yield from _own_name(("security", "allowed_hosts", place), host)
    yield from _names(source, "neurons", "name", [node.name for node in config.neurons])
    yield from _names(source, "models", "id", [profile.id for profile in config.models])
    for number, node in enumerate(config.neurons):
        yield from _endpoint(("neurons", number, "endpoint"), node.endpoint)
    nodes = [node.name for node in config.neurons]
    for number, profile in enumerate(config.models):
        yield from _profile(("models", number), profile, nodes)
    yield from _aliases(config.aliases, {profile.id for profile in config.models})


def _body_limits(table: str, limits: gateway.Gateway | neuron.Agent) -> Iterator[Problem]:
    if limits.max_buffered < limits.max_body:
        yield Problem(
            (table, "max_buffered"),
            f"found {limits.max_buffered}",
            f"at least max_body ({limits.max_body}), or a large body could never be taken",
            needs=((table, "max_body"),),
        )


def _profile(key: KeyPath, profile: Profile, nodes: list[str]) -> Iterator[Problem]:
    for place, name in enumerate(profile.pinned_on):
        if name not in nodes:
            yield Problem(
                (*key, "pinned_on", place),
                f"no neuron is called {quoted(name)}{did_you_mean(name, nodes)}",
                ", ".join(sorted(nodes)) or "nothing, since no neuron is configured",
                needs=(("neurons",), *(("neurons", each, "name") for each in range(len(nodes)))),
            )
    source = profile.source
    if source is not None and (not source.strip() or ":" in source):
        yield Problem(
            (*key, "source"), f"found {quoted(source)}", 'a word without a colon, like "hf"'
        )
    for table, numbers in (("limit", profile.limit), ("cost", profile.cost)):
        for name, value in msgspec.structs.asdict(numbers).items() if numbers else ():
            yield from _least((*key, table, name), value, 0)


def _tokens(config: gateway.Config, base: Path, environ: Mapping[str, str]) -> Iterator[Problem]:
    told: dict[str, str] = {}  # variable → the first node that it would be for
    for number, node in enumerate(config.neurons):
        key = ("neurons", number, "token_file")
        name = variable(node.name)
        if name in environ and name in told:
            yield Problem(
                ("neurons", number, "name"),
                f"{name} would be the token of {quoted(told[name])} and of {quoted(node.name)}; "
                "use a token_file for each",
            )
        told.setdefault(name, node.name)
        try:
            read_token(node, base, environ)
        except SecretError as error:
            yield Problem(key, str(error))


def _certificates(config: gateway.Config, base: Path) -> Iterator[Problem]:
    files: list[tuple[KeyPath, str | None]] = [(("upstream", "ca_file"), config.upstream.ca_file)]
    files += [
        (("neurons", number, "ca_file"), node.ca_file) for number, node in enumerate(config.neurons)
    ]
    for key, file in files:
        if file is not None:
            yield from _certificate_file(key, located(base, file))


def _certificate_file(key: KeyPath, file: Path) -> Iterator[Problem]:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except (OSError, ValueError) as error:
        is_there = isinstance(error, ssl.SSLError)
        words = "holds no certificates" if is_there else reason(error)
        yield Problem(key, f"{file}: {words}", "a PEM file of certificates")


def _aliases(aliases: Mapping[str, str], models: set[str]) -> Iterator[Problem]:
    for alias, model in aliases.items():
        key = ("aliases", alias)
        if alias in models:
            yield Problem(key, "a model of the catalogue has this id; choose another alias")
        elif model in aliases:
            yield Problem(key, f"{quoted(model)} is an alias itself; name the model it means")
        elif not alias.strip() or not model.strip():
            yield Problem(key, "neither an alias nor its model can be empty")
        elif not alias.isprintable() or len(alias) > MAX_NAME:
            yield Problem(key, f"found {quoted(alias)}", f"1 to {MAX_NAME} printable characters")


def _neuron_problems(config: neuron.Config, source: Source) -> Iterator[Problem]:
    yield from _listen(("neuron", "listen"), config.neuron.listen)
    yield from _body_limits("neuron", config.neuron)
    yield from _names(source, "models", "id", [model.id for model in config.models])
    for number, model in enumerate(config.models):
        if model.harness not in neuron.HARNESSES:
            yield Problem(
                ("models", number, "harness"),
                f"found {quoted(model.harness)}{did_you_mean(model.harness, neuron.HARNESSES)}",
                ", ".join(neuron.HARNESSES),
            )


def _least(key: KeyPath, value: float | None, least: int) -> Iterator[Problem]:
    if value is not None and value < least:
        yield Problem(key, f"found {value}", f"{least} or more")


def _listeners(settings: gateway.Gateway) -> Iterator[Problem]:
    yield from _listen(("gateway", "listen"), settings.listen)
    yield from _admin_listen(settings.admin_listen)
    if settings.metrics_listen is not None:
        yield from _listen(("gateway", "metrics_listen"), settings.metrics_listen)
    taken = {settings.listen: "listen"}
    for key in ("admin_listen", "metrics_listen"):
        where = getattr(settings, key)
        if not where:
            continue
        same = [key for each, key in taken.items() if each == where or overlap(each, where)]
        if same and not where.endswith(":0"):
            yield Problem(
                ("gateway", key),
                f"found {quoted(where)}, which is {same[0]}",
                "another port",
                needs=(("gateway", same[0]),),
            )
        else:
            taken[where] = key


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


def _names(source: Source, table: str, field: str, names: Iterable[str]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        key = (table, number, field)
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            yield Problem(key, f"found {quoted(name)}", f"1 to {MAX_NAME} printable characters")
        elif name in seen:
            first = source.origin((table, seen[name], field))
            yield Problem(
                key,
                f"{quoted(name)} is used twice, first in {first}; choose another",
                needs=((table, seen[name], field),),
            )
        seen.setdefault(name, number)


def _origin(key: KeyPath, origin: str) -> Iterator[Problem]:
    """A browser sends an origin in one spelling only."""
    if origin not in {"*", "null"} and not _ORIGIN.fullmatch(origin):
        allowed = (
            'an origin in lower case and without a path, like "https://chat.example", '
            '"app://obsidian.md" or "http://localhost:*"; or "*"'
        )
        yield Problem(key, f"found {quoted(origin)}", allowed)


def _own_name(key: KeyPath, host: str) -> Iterator[Problem]:
    if not is_host(host) or host != host.lower():
        yield Problem(
            key, f"found {quoted(host)}", 'a host in lower case, like "llm.example.com"; or "*"'
        )


def _host(key: KeyPath, host: str) -> Iterator[Problem]:
    if not is_host(host) and not (
        host.count(":") > 1 and not host.strip("0123456789abcdefABCDEF:.[]")
    ):
        yield Problem(key, f"found {quoted(host)}", 'a host, like "10.0.0.7" or "gpu.internal"')


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
    elif ":" not in host and not is_host(host):
        yield Problem(key, f"{found}, whose host can't be one", allowed)
