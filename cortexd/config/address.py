"""Where to listen, as people write it: host:port, or unix:/path."""

from __future__ import annotations

from cortexd.config.files import expanded

ALLOWED = 'host:port, like "0.0.0.0:8080", "[::1]:8080" or ":8080" for every interface'


def parse_listen(text: str) -> tuple[str, int]:
    """Return the host and port of "0.0.0.0:8080". Raises ValueError.

    No host means every interface, IPv4 and IPv6; so does "[::]".
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    is_port = port.isascii() and port.isdecimal() and len(port) < 6 and int(port) <= 65535
    is_place = bracketed or not host or is_host(host)
    if not colon or not is_port or not is_place:
        raise ValueError(f"expected {ALLOWED}")
    return host.strip("[]"), int(port)


def overlap(one: str, other: str) -> bool:
    """Return whether the two can't both be listened on. False if either is not host:port."""
    try:
        (host, port), (other_host, other_port) = parse_listen(one), parse_listen(other)
    except ValueError:
        return False
    hosts = {host, other_host}
    if port != other_port or port == 0:
        return False
    if len(hosts) == 1 or hosts & {"", "::"}:
        return True
    return "0.0.0.0" in hosts and not any(":" in each for each in hosts)  # noqa: S104


def listen_host(text: str) -> str:
    """Return the host of an address to listen at, in lower case; "": it names none."""
    try:
        return "" if text.startswith(UNIX) else parse_listen(text)[0].lower()
    except ValueError:
        return ""


def is_host(text: str) -> bool:
    """Whether it can be a host's name or IPv4 address: what can't breaks resolvers in odd ways."""
    if not text.isprintable() or any(mark in text for mark in " :/@[]"):
        return False
    try:
        name = text.encode("idna" if not text.isascii() else "ascii").rstrip(b".")
    except UnicodeError:
        return False
    return all(0 < len(label) < 64 for label in name.split(b"."))


UNIX = "unix:"
MAX_UNIX = 107  # bytes of a path that the kernel takes


def unix_path(text: str) -> str | None:
    """Return the path of "unix:/run/x.sock", with "~" expanded; None: it is no socket file.

    Raises ValueError.
    """
    if not text.startswith(UNIX):
        return None
    path = text.removeprefix(UNIX)
    path = str(expanded(path)) if path.startswith("~") else path
    if not path.startswith("/") or "\0" in path or len(path.encode()) > MAX_UNIX:
        raise ValueError(f"expected an absolute path of at most {MAX_UNIX} bytes after {UNIX}")
    return path
