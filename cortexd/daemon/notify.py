"""Telling systemd how the service is (sd_notify): READY=1, STOPPING=1, STATUS=…

Without a NOTIFY_SOCKET nothing happens, and nothing that happens here ever harms the service.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def send(message: str) -> None:
    """Send `KEY=value` lines to the service manager, if there is one; never blocks or raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket is spelt with a leading NUL
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.connect(address)
        manager.send(message.encode())
