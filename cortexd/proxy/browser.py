"""Rules for requests that web pages send: cross-site requests, and names that are rebound by DNS.

Browsers mark such requests with `Origin` or `Sec-Fetch-Site`, and no page can remove these. Other
clients send neither, so their requests cost `is_from_browser` only. Nothing here answers a request.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from multidict import istr

ANY: Final = "*"
ORIGIN: Final = istr("Origin")  # folded once, not at every look
SITE: Final = istr("Sec-Fetch-Site")
_MODE: Final = istr("Sec-Fetch-Mode")
_TARGET: Final = istr("Sec-Fetch-Dest")
_HOST: Final = istr("Host")
# Suffixes that no public registry delegates (RFC 6762, RFC 8375, ICANN's .internal; .lan by habit),
# so that no stranger's DNS can point such a name here.
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".lan", ".internal", ".home.arpa")


def is_from_browser(request: web.BaseRequest) -> bool:
    """Return whether a browser sent the request, for a page or for its user."""
    headers = request.headers
    return ORIGIN in headers or SITE in headers


def foreign_origin(request: web.BaseRequest, allowed: Collection[str]) -> str | None:
    """Return the origin of a cross-site request that `allowed` does not list; None: it is allowed.

    The origin is "" where the browser gives none, as for images. A followed link is no request
    of the page that shows it: that page can't read the answer.
    """
    headers = request.headers
    site = headers.get(SITE, "").lower()
    if site in {"same-origin", "none"}:
        return None
    origin = headers.get(ORIGIN)
    if origin is None and not site:
        return None
    if origin is None:
        is_link = headers.get(_MODE) == "navigate" and headers.get(_TARGET) == "document"
        if site == "same-site" or (is_link and request.method in {"GET", "HEAD"}):
            return None
        return None if ANY in allowed else ""
    # Browsers send Sec-Fetch-Site over https and to localhost only; otherwise the Host decides.
    if not site and _authority(origin.partition("://")[2]) == _authority(headers.get(_HOST, "")):
        return None
    return None if allows_origin(origin, allowed) else origin


def allows_origin(origin: str, allowed: Collection[str]) -> bool:
    """Return whether `allowed` lists an origin.

    An entry is the origin itself, with `*` as its port or, except for http, as its host, or `*`.
    """
    if not allowed:
        return False
    if ANY in allowed or origin in allowed:
        return True
    scheme, mark, host = origin.partition("://")
    if not mark:  # "null", or no origin at all
        return False
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal():
        host = name
    if scheme not in {"http", "https"} and f"{scheme}://*" in allowed:
        return True
    return f"{scheme}://{host}:*" in allowed


def host_name(field: str) -> str:
    """Return the host that a Host field names, in lower case; "": none."""
    try:
        parts = urlsplit(f"//{field}")
        host = parts.hostname or ""
        _ = parts.port  # raises ValueError if there is no valid port
    except ValueError:
        return ""
    return "" if "@" in field else host.rstrip(".")


def is_local_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Return whether no stranger's DNS can have led a browser here under that name.

    It is an IP address, localhost, this machine's name, a name that only a local network can give
    (one label, `.local` and the like), or in `allowed`, which should hold the host of the listener,
    too. host: see `host_name`.
    """
    if not host:
        return False
    return (
        "." not in host
        or host.endswith(_LOCAL_SUFFIXES)
        or host == _machine()
        or host in allowed
        or ANY in allowed
        or is_address(host)
    )


def is_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _authority(text: str) -> str:
    """Return host:port as browsers spell it: without the default port of the scheme."""
    return text.lower().removesuffix(":443").removesuffix(":80")


@lru_cache(maxsize=1)
def _machine() -> str:
    return socket.gethostname().lower().rstrip(".")
