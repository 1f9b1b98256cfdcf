"""Resolves `localhost` to the loopback addresses of both families, whatever /etc/hosts lists."""

from __future__ import annotations

import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class LoopbackResolver(AbstractResolver):
    """Answers every lookup with 127.0.0.1 and ::1 (RFC 6761, 6.3). Only for `localhost`."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return both addresses, or the one of `family`."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=own,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for own, address in ADDRESSES
            if family in (socket.AF_UNSPEC, own)
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""
