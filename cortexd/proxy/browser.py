"""Rules for requests that web pages send: cross-site requests, and names that are rebound by DNS.

Browsers mark such requests with `Origin` or `Sec-Fetch-Site`, and no page can remove these. Other
clients send neither, so `is_from_browser` is all that their requests cost. Nothing here answers.
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
    """Whether a browser sent the request on behalf of a page, or of the person in front of it."""
    headers = request.headers
    return ORIGIN in headers or SITE in headers


def foreign_origin(request: web.BaseRequest, allowed: Collection[str]) -> str | None:
    """Return the origin of a cross-site request that `allowed` does not list; None: none is.

    The origin is "" where the browser gives none, as for images. A link that somebody follows is
    no request of the page that shows it: the page reads nothing of the answer.
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
    # Browsers send Sec-Fetch-Site over https and to localhost only; else the Host has to tell.
    if not site and _authority(origin.partition("://")[2]) == _authority(headers.get(_HOST, "")):
        return None
    return None if allows_origin(origin, allowed) else origin


def allows_origin(origin: str, allowed: Collection[str]) -> bool:
    """Whether `allowed` lists an origin: itself, with `*` as its port or, but for http, as its
    host, or `*` alone."""
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
    """Return the host that a Host field names, in lower case; "": it names none."""
    try:
        parts = urlsplit(f"//{field}")
        host = parts.hostname or ""
        _ = parts.port  # raises, where it is none
    except ValueError:
        return ""
    return "" if "@" in field else host.rstrip(".")


def is_own_host(host: str, allowed: Collection[str] = ()) -> bool:
    """Whether no stranger's DNS can have led a browser here under that name (see `host_name`):
    an IP address, localhost, this machine's name, or one that `allowed` lists."""
    if not host:
        return False
    return (
        host in {"localhost", _machine()} or host in allowed or ANY in allowed or is_address(host)
    )


def is_local_host(host: str, allowed: Collection[str] = ()) -> bool:
    """The same, and the names that only a local network gives: a single label, `.local`, …"""
    if not host:
        return False
    return "." not in host or host.endswith(_LOCAL_SUFFIXES) or is_own_host(host, allowed)


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _authority(text: str) -> str:
    """host:port as browsers spell them: without the port that the scheme has anyway."""
    return text.lower().removesuffix(":443").removesuffix(":80")


@lru_cache(maxsize=1)
def _machine() -> str:
    return socket.gethostname().lower().rstrip(".")
