"""The addresses that this process listens at: whether a connection to one would arrive here.

Compares resolved addresses; it never looks up a name.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from typing import Final, NamedTuple

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Addresses for documentation (RFC 5737, RFC 3849): they belong to no machine.
_FOREIGN: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
_LOOPBACK: Final = {4: ipaddress.ip_address("127.0.0.1"), 6: ipaddress.ip_address("::1")}


class BoundAddress(NamedTuple):
    """The address of a listening TCP socket.

    is_dual_stack: an IPv6 socket that takes IPv4 connections, too.
    """

    ip: str
    port: int
    is_dual_stack: bool

    @classmethod
    def of(cls, sock: socket.socket) -> BoundAddress | None:
        """Return the address of a socket; None if it is not an IP socket."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        ip, port = sock.getsockname()[:2]
        is_dual_stack = sock.family == socket.AF_INET6 and not sock.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        )
        return cls(ip, port, is_dual_stack)

    def accepts(self, ip: str, port: int) -> bool:
        """Return whether a connection from this machine to `ip` and `port` arrives here."""
        if port != self.port:  # the usual case
            return False
        bound, wanted = _parse(self.ip), _parse(ip)
        if bound is None or wanted is None:
            return False
        if wanted.is_unspecified:  # Linux connects to loopback instead
            wanted = _LOOPBACK[wanted.version]
        if not bound.is_unspecified:
            return bound == wanted
        if bound.version != wanted.version and not self.is_dual_stack:
            return False
        return is_local(ip)


def is_local(ip: str) -> bool:
    """Return whether `ip` is an address of this machine: loopback, or of any of its interfaces."""
    address = _parse(ip)
    if address is None:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    if _can_bind(_FOREIGN[address.version]):
        # With ip_nonlocal_bind the kernel binds to any address: ask it for the route instead, whose
        # source is the destination itself if that is local.
        return _source_for(ip) == address
    return _can_bind(ip)


def _parse(ip: str) -> _Address | None:
    """Return an IP address without its scope; an IPv4-mapped one as IPv4."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _can_bind(ip: str) -> bool:
    try:
        family, where = socket_address(ip, 0)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def _source_for(ip: str) -> _Address | None:
    with suppress(OSError):
        family, where = socket_address(ip, 9)  # nothing is sent: a datagram socket only records it
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return _parse(probe.getsockname()[0])
    return None


def socket_address(ip: str, port: int) -> tuple[int, tuple[str, int]]:
    """Return the family and the socket address of an IP address, which may have a `%scope`.

    Never asks a name server. Raises OSError, for a scope that is no interface for instance.
    """
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    ((family, _, _, _, where), *_) = socket.getaddrinfo(
        ip, port, type=socket.SOCK_DGRAM, flags=flags
    )
    return family, where  # type: ignore[return-value]  # (ip, port, flow, scope) for IPv6
