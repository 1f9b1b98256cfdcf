"""Where to listen, as people write it: host:port, or unix:/path."""

from __future__ import annotations

ALLOWED = 'host:port, like "0.0.0.0:8080", "[::1]:8080" or ":8080" for every interface'


def parse_listen(text: str) -> tuple[str, int]:
    """ "0.0.0.0:8080" → ("0.0.0.0", 8080); no host means every interface. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError(f"expected {ALLOWED}")
    return host.strip("[]"), int(port)


UNIX = "unix:"
MAX_UNIX = 107  # bytes of a path that the kernel takes


def unix_path(text: str) -> str | None:
    """ "unix:/run/x.sock" → "/run/x.sock"; None: it is no socket in the file system.

    Raises ValueError.
    """
    if not text.startswith(UNIX):
        return None
    path = text.removeprefix(UNIX)
    if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_UNIX:
        raise ValueError(f"expected an absolute path of at most {MAX_UNIX} bytes after {UNIX}")
    return path
