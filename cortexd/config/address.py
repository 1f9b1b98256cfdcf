"""Where to listen, as people write it: host:port."""

from __future__ import annotations

ALLOWED = 'host:port, like "0.0.0.0:8080", "[::1]:8080" or ":8080" for every interface'


def parse_listen(text: str) -> tuple[str, int]:
    """ "0.0.0.0:8080" → ("0.0.0.0", 8080); no host means every interface. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError(f"expected {ALLOWED}")
    return host.strip("[]"), int(port)
