"""Connection facts that only the kernel has, and a reset, which only it can send."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from typing import Final

_LAST_DATA_RECV: Final = slice(52, 56)  # tcpi_last_data_recv in struct tcp_info, in ms


def waited_in_kernel(wire: asyncio.Transport) -> float:
    """Return the seconds since the last bytes arrived; 0.0 if unknown."""
    sock = wire.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.stop)
    return int.from_bytes(info[_LAST_DATA_RECV], sys.byteorder) / 1000


def has_unread(wire: asyncio.Transport) -> bool:
    """Return whether the kernel holds something that was not read yet: bytes, or the end."""
    if wire.is_closing():
        return False
    poll = select.poll()
    poll.register(wire.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def reset(wire: asyncio.Transport) -> None:
    """Reset the connection; bytes that were not sent are lost."""
    sock = wire.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.abort()
