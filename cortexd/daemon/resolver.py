"""Names to addresses: one resolver for the whole process, the nodes' session and the proxy alike.

DNS is asked first (c-ares, in a thread of its own), then the system's getaddrinfo in another one,
which follows nsswitch.conf. c-ares knows no mDNS: `beast.local` and names of one label (`beast`)
go to getaddrinfo at once. An IP address and `localhost` (RFC 6761, section 6.3) need no lookup,
so a name server that does not answer delays neither of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import aiodns
from aiohttp.abc import AbstractResolver, ResolveResult

from cortexd.daemon.lookup import LookupThreads
from cortexd.daemon.tasks import Tasks

# Seconds that an answer is used without asking (c-ares minds the record's own TTL besides), that an
# old one is when there is no new one, and that a connection waits for a new one when it has an old.
TTL: Final = 10.0
RETRY: Final = 2.0
PATIENCE: Final = 1.0
# Seconds that a lookup without an earlier answer is waited for: less than a poll may take, so that
# the lookup is reported as the cause. It goes on, and its answer is used by the next one.
FIRST_PATIENCE: Final = 4.0
MAX_NAMES: Final = 1024  # answers kept; a fleet has fewer hosts

_DNS_TIMEOUT: Final = 1.0  # seconds for the first try at a server; c-ares doubles it for the next
_DNS_TRIES: Final = 2


class Address(NamedTuple):
    """An IP address; a link-local one has its scope behind a `%`."""

    family: int
    ip: str


class _Answer(NamedTuple):
    addresses: tuple[Address, ...]
    until: float


class NoAddress(OSError):
    """There is none; its words say of whom and why."""

    def __init__(self, words: str) -> None:
        super().__init__(None, words)  # aiohttp prints `strerror`

    def __str__(self) -> str:
        return str(self.strerror)


AskSystem = Callable[[str], Awaitable[Iterable[Address]]]


_LOCALHOST: Final = (Address(socket.AF_INET, "127.0.0.1"), Address(socket.AF_INET6, "::1"))


class Resolver(AbstractResolver):
    """Resolves names; simultaneous requests for one name share one lookup.

    New connections get the newest answer; while there is none (no such name, no answer from any
    server), the last good one.
    nameservers: `host:port` of DNS servers to ask instead of the system's.
    ask_system: the second one to ask; None: getaddrinfo.
    now: a monotonic clock.
    """

    def __init__(
        self,
        *,
        nameservers: Sequence[str] = (),
        ask_system: AskSystem | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nameservers = nameservers
        self._threads = LookupThreads()
        self._ask_system = ask_system or self._getaddrinfo
        self._now = now
        self._dns: aiodns.DNSResolver | None = None
        self._tasks = Tasks()
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._answers: dict[str, _Answer] = {}
        self._worked: dict[str, str] = {}  # name → the address that took the last connection

    def prefer(self, host: str, ip: str) -> None:
        """Return this address of a host first from now on: it has accepted a connection."""
        name = host.lower()
        if self._worked.get(name) == ip:  # the usual case
            return
        self._worked.pop(name, None)
        self._worked[name] = ip
        if len(self._worked) > MAX_NAMES:
            del self._worked[next(iter(self._worked))]

    async def addresses(self, host: str, port: int) -> list[tuple[str, int]]:
        """(IP, port) pairs, the preferred first, never none of them. Raises NoAddress."""
        return [(address.ip, port) for address in await self._addresses(host)]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The same in aiohttp's words. Raises NoAddress."""
        found = [
            ResolveResult(
                hostname=host,
                host=address.ip,
                port=port,
                family=address.family,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._addresses(host)
            if family in (socket.AF_UNSPEC, address.family)
        ]
        if not found:
            raise NoAddress(f"{host} has no {family.name} address")
        return found

    async def close(self) -> None:
        """End the lookups that still run."""
        await self._tasks.close()
        if self._dns is not None:
            await self._dns.close()

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        if (literal := _literal(host)) is not None:
            return (literal,)
        name = host.lower()
        found = await self._found(host, name)
        worked = self._worked.get(name)
        if worked is None or worked == found[0].ip:
            return found
        return tuple(sorted(found, key=lambda address: address.ip != worked))

    async def _found(self, host: str, name: str) -> tuple[Address, ...]:
        if is_localhost(name):
            return _LOCALHOST
        answer = self._answers.get(name)
        if answer is not None and self._now() < answer.until:
            return answer.addresses
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = self._tasks.spawn(f"resolve {name}", self._ask(name))
        # Not awaited itself: a connection that is given up leaves the others their lookup.
        await asyncio.wait((asking,), timeout=FIRST_PATIENCE if answer is None else PATIENCE)
        answer = self._answers.get(name, answer)
        if answer is None:
            if not asking.done():
                said = f"no name server has answered within {FIRST_PATIENCE:g} s"
            else:
                said = "the resolver is closed" if asking.cancelled() else asking.result()
            raise NoAddress(f"can't resolve {host}: {said}")
        if not asking.done():  # nobody else has to wait in vain for a while
            self._note(name, answer.addresses, RETRY)
        return answer.addresses

    async def _ask(self, name: str) -> str:
        """Look a name up and note the answer; "" or why there is none."""
        try:
            self._note(name, tuple(dict.fromkeys(await self._look_up(name))), TTL)
        except OSError as error:
            if (last := self._answers.get(name)) is not None:
                self._note(name, last.addresses, RETRY)
            return error.strerror or str(error)
        finally:
            del self._asking[name]
        return ""

    def _note(self, name: str, addresses: tuple[Address, ...], seconds: float) -> None:
        self._answers.pop(name, None)  # to the end of the line: the front one is the oldest
        self._answers[name] = _Answer(addresses, self._now() + seconds)
        if len(self._answers) > MAX_NAMES:
            del self._answers[next(iter(self._answers))]

    async def _look_up(self, name: str) -> Iterable[Address]:
        """Addresses, never none of them. Raises OSError."""
        try:
            if not _is_for_the_system_alone(name):
                with suppress(aiodns.error.DNSError):
                    return await self._ask_dns(name)
            return await self._ask_system(name)
        except ValueError as error:  # IDNA has no form for it: a label is empty, or too long
            raise NoAddress("this is no host's name") from error

    async def _getaddrinfo(self, name: str) -> Iterable[Address]:
        infos = await self._threads.getaddrinfo(name)
        return [_address(family, at) for family, _, _, _, at in infos]

    async def _ask_dns(self, name: str) -> list[Address]:
        if self._dns is None:
            self._dns = aiodns.DNSResolver(
                self._nameservers, timeout=_DNS_TIMEOUT, tries=_DNS_TRIES
            )
        found = await self._dns.getaddrinfo(name, type=socket.SOCK_STREAM)
        return [
            _address(node.family, (node.addr[0].decode(), *node.addr[1:])) for node in found.nodes
        ]


def _address(family: int, at: tuple[Any, ...]) -> Address:
    """Of a socket address: (ip, port), or (ip, port, flow, scope) for IPv6."""
    ip = str(at[0])
    if family == socket.AF_INET6 and at[3] and "%" not in ip:
        ip = f"{ip}%{at[3]}"
    return Address(family, ip)


def _literal(host: str) -> Address | None:
    """An address that is spelt out. Raises NoAddress on the spellings that only inet_aton takes.

    getaddrinfo would make 127.0.0.1 of `127.1`, `2130706433` and `0x7f000001`, behind the back of
    whoever has checked the name (the URL standard: a host that ends in a number is an address).
    """
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2].lower()
        if last.isdigit() or last.startswith("0x"):
            raise NoAddress(f"{host} is no canonical IP address") from None
        return None
    return Address(socket.AF_INET if version == 4 else socket.AF_INET6, host)


def is_localhost(name: str) -> bool:
    """Return whether a name in lower case means this machine by definition."""
    name = name.rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _is_for_the_system_alone(name: str) -> bool:
    name = name.rstrip(".")
    return "." not in name or name.endswith(".local")
