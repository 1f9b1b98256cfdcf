"""Turns the inference endpoint that a node names into a URL that the gateway may use.

A neuron is trusted to run models, not to send the gateway to other hosts. Loopback names mean
the neuron's own host, since a host can't know its outside name; any other host must be the
neuron's own or be allowed in the configuration. A neuron that is configured with https is never
asked for inference in clear text.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from cortexd.daemon.resolver import is_localhost


class EndpointRefused(Exception):
    """The node names an endpoint that must not be used; the message says why and what to do."""


def usable_endpoint(url: str, neuron: str, allowed_hosts: Collection[str]) -> str:
    """Return the base URL to use for `url`, the node's own word, without a trailing slash.

    neuron: the configured endpoint of that node. Its host replaces loopback names; its whole origin
        replaces http on its own host if it is https.
    Raises EndpointRefused.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise EndpointRefused(f"it names the endpoint {url!r}, which is no URL: {error}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise EndpointRefused(f"it names the endpoint {url!r}, which is not http or https")
    if parts.username is not None or parts.password is not None:
        raise EndpointRefused("it names an endpoint with credentials in the URL")
    if parts.query or parts.fragment or any(char <= " " or char > "~" for char in parts.path):
        raise EndpointRefused(f"it names the endpoint {url!r}, which is not a plain base URL")
    configured = urlsplit(neuron)
    path = parts.path.rstrip("/")
    is_own = is_loopback(host) or is_own_host(url, neuron)
    is_clear = configured.scheme == "https" and parts.scheme == "http"
    if is_own and is_clear:  # it does not know of the TLS in front of it
        return SplitResult("https", configured.netloc, path, "", "").geturl()
    if is_loopback(host):
        host = configured.hostname or ""
    elif not is_own and _name(host) not in {_name(name) for name in allowed_hosts}:
        raise EndpointRefused(
            f"it names an endpoint on the host {host!r}, which is not its own; if that is right, "
            f"add it: [security] allowed_inference_hosts = [{host!r}]".replace("'", '"')
        )
    if is_clear:
        raise EndpointRefused(
            f"it names the endpoint {url!r}, but a node that is configured with https is not asked "
            "for inference in clear text; have it name an https endpoint"
        )
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    return SplitResult(parts.scheme, netloc, path, "", "").geturl()


def port_hint(endpoint: str, neuron: str) -> str:
    """Return a hint if an endpoint was not reached though the neuron is; "": none.

    The usual reason is a port mapping: the node names the port inside.
    """
    named, configured = _port(endpoint), _port(neuron)
    if named == configured or not is_own_host(endpoint, neuron):
        return ""
    return (
        f"The node names port {named} for inference, and its configured endpoint has port "
        f"{configured}: behind a port mapping, map port {named}, too."
    )


def may_carry_token(endpoint: str, neuron: str) -> bool:
    """Return whether a node's token may be sent to an endpoint.

    The endpoint must be on the neuron's own host, and not in clear text where the neuron is
    configured with https.
    """
    if neuron.startswith("https:") and not endpoint.startswith("https:"):
        return False
    return is_own_host(endpoint, neuron)


def is_own_host(endpoint: str, neuron: str) -> bool:
    """Return whether an endpoint is on the neuron's own host."""
    return _name(urlsplit(endpoint).hostname or "") == _name(urlsplit(neuron).hostname or "")


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether a host name means "this very machine", in any spelling that a resolver accepts."""
    name = _name(host)
    if is_localhost(name):
        return True
    address = _address(name)
    if address is None:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def _name(host: str) -> str:
    return host.lower().rstrip(".").partition("%")[0]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:
        # The old spellings that getaddrinfo still takes: 127.1, 2130706433, 0x7f000001.
        return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        return None
