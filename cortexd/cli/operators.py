"""Where the operators' listener of a gateway is, and how a command asks something of it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from cortexd.cli.paths import add_config_option, config_path
from cortexd.cli.screen import plain
from cortexd.cli.suggestions import add_suggestion

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

T = TypeVar("T")

DEFAULT = "http://127.0.0.1:8081"
CONNECT_WITHIN = 5.0  # seconds; an answer takes what a load takes

Answer = tuple[int, dict[str, Any]]


class NoGateway(Exception):
    """No gateway answers there; the message says why.

    is_absent: nothing listens there.
    """

    def __init__(self, message: str, *, is_absent: bool = False) -> None:
        super().__init__(message)
        self.is_absent = is_absent


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """What every command about a model takes."""
    parser.add_argument("model", metavar="MODEL", help="its id, or an alias")


def add_node_option(parser: argparse.ArgumentParser) -> None:
    """What every command takes that may be about one node alone."""
    parser.add_argument("--node", metavar="NAME", help="there, and nowhere else")


def add_node_argument(parser: argparse.ArgumentParser) -> None:
    """What every command about a node takes."""
    parser.add_argument("name", metavar="NODE", help="its name in the configuration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command for operators takes."""
    parser.add_argument(
        "--url",
        type=_url,
        help="the gateway's admin_listen, as http://host:port or unix:/path "
        f"(default: what the configuration says, else {DEFAULT})",
    )
    add_config_option(parser, "cortex.toml")
    parser.add_argument("--json", action="store_true", help="print the gateway's answer as JSON")


def run(
    args: argparse.Namespace,
    ask: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, Answer]],
    said: Callable[[dict[str, Any]], str],
) -> int:
    """Ask, and print what was answered: 0, or 1 when it was refused or nobody is there.

    said: the answer in words; may raise NoGateway, for one that is not like a gateway's.
    """
    import asyncio

    async def talk() -> Answer:
        async with session(url) as gateway:
            status, answer = await ask(gateway)
            if not args.json:
                await add_suggestion(gateway, args, answer)
            return status, answer

    url = args.url or _configured(args.config)
    if not url:
        print("The gateway has no admin_listen in its configuration.", file=sys.stderr)
        return 1
    try:
        status, answer = asyncio.run(talk())
        words = said(answer) if status == 200 and not args.json else ""
    except NoGateway as error:
        if error.is_absent:
            words = f"No gateway is listening at {url}. Is it running (cortexd serve)?"
        else:
            words = (
                f"No gateway answers at {url}: {error}\n"
                "Name the address of its [gateway] admin_listen with --url."
            )
        print(words, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer))
    elif status == 200:
        print(words)
    else:
        print(plain(answer["error"]["message"]), file=sys.stderr)
    return 0 if status == 200 else 1


@asynccontextmanager
async def session(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of that gateway. Raises NoGateway for what goes wrong on the way to it."""
    import aiohttp

    from cortexd.daemon.resolver import Resolver

    path = url.removeprefix("unix:") if url.startswith("unix:") else None
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
    resolver = Resolver()  # as the gateway's: `localhost` is both families, names may be of mDNS
    connector: aiohttp.BaseConnector
    if path:
        connector = aiohttp.UnixConnector(path)
    else:
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
    try:
        async with aiohttp.ClientSession(
            "http://localhost" if path else url,
            connector=connector,
            timeout=timeout,
        ) as client:
            yield client
    except (aiohttp.ClientError, OSError) as error:
        number = getattr(getattr(error, "os_error", error), "errno", None)
        if number in (errno.EACCES, errno.EPERM):
            words = "this user may not connect to it; run the command as root"
        else:
            words = os.strerror(number) if number else str(error)
        is_absent = number in (errno.ECONNREFUSED, errno.ENOENT)
        raise NoGateway(words, is_absent=is_absent) from error
    finally:
        await resolver.close()


async def get(client: aiohttp.ClientSession, *segments: str, **query: str) -> Answer:
    """GET /api/…: the status, and what the JSON says. Raises NoGateway."""
    async with client.get(_path(segments), params=query) as answer:
        return await _read(answer)


async def post(client: aiohttp.ClientSession, *segments: str, body: object) -> Answer:
    """POST /api/…: the status, and what the JSON says. Raises NoGateway."""
    async with client.post(_path(segments), json=body) as answer:
        return await _read(answer)


def understood(answer: dict[str, Any], kind: type[T]) -> T:
    """The answer as that Struct. Raises NoGateway."""
    import msgspec

    try:
        return msgspec.convert(answer, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise NoGateway(f"what is there does not answer like a gateway: {error}") from error


def _path(segments: tuple[str, ...]) -> URL:
    """Encoded by us: whatever is in a name, it stays one segment."""
    from yarl import URL

    return URL("/api/" + "/".join(quote(each, safe="") for each in segments), encoded=True)


async def _read(answer: aiohttp.ClientResponse) -> Answer:
    content = await answer.read()
    try:
        said = json.loads(content)
        if answer.status != 200:
            str(said["error"]["message"])
    except (ValueError, TypeError, LookupError) as error:
        raise NoGateway(f"what is there answers {answer.status}, not like a gateway") from error
    return answer.status, said


def _url(text: str) -> str:
    from cortexd.config.address import UNIX, unix_path

    try:
        if (socket_file := unix_path(text)) is not None:
            return UNIX + socket_file
        parts = urlsplit(text)
        is_base = parts.path in {"", "/"} and not parts.query and not parts.fragment
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0 and is_base:
            return text.rstrip("/")
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is neither http://host:port nor unix:/path")


def _configured(given: Path | None) -> str:
    """The configuration's admin_listen as a URL; "" when there is none, the default when there is
    no configuration that this user can read. Raises ConfigError for a file that was asked for."""
    from cortexd.config.address import UNIX, parse_listen, unix_path
    from cortexd.config.check import load_gateway
    from cortexd.config.source import ConfigError

    try:
        path = config_path(given, "cortex.toml")
        listen = load_gateway(path, with_files=False).gateway.admin_listen
    except ConfigError:
        if given is not None:
            raise
        return DEFAULT
    if not listen:
        return ""
    if socket_file := unix_path(listen):
        return UNIX + socket_file
    host, port = parse_listen(listen)
    # Every interface: use this machine's loopback, of either family if both are listened on.
    host = {"": "localhost", "::": "localhost", "0.0.0.0": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def note_line(answer: Mapping[str, Any]) -> str:
    """Return the gateway's note on the change, as a line of its own; "" if there is none."""
    note = answer.get("note")
    return f"\nwarning: {note}" if note else ""
