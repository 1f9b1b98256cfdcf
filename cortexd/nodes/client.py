"""Typed calls to a neuron. Every fault is a NodeError in words that an operator can act on.

The node's token is masked in everything that the node sends, before it is read.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import aiohttp
import msgspec
from yarl import URL

from cortexd.nodes.masking import mask_of
from cortexd.wire import neuron as wire

T = TypeVar("T")

MAX_URL: Final = 2048  # characters of an endpoint; the usual bound for a URL

_decode_discovery = msgspec.json.Decoder(wire.Discovery)
_decode_health = msgspec.json.Decoder(wire.Health)
_decode_models = msgspec.json.Decoder(list[wire.Model])
_decode_status = msgspec.json.Decoder(wire.StatusAnswer)
_decode_endpoint = msgspec.json.Decoder(wire.Endpoint)


class NodeError(Exception):
    """A call to a neuron that failed.

    status: the HTTP status of its answer; None: there was no usable answer.
    code: the machine-readable code in its answer, if it gave one.
    words: the neuron's own message, without a full stop at its end, else ours.
    """

    def __init__(
        self, message: str, status: int | None = None, code: str | None = None, words: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.words = words.rstrip(". ") or message


def _by_the_session() -> None:
    return None


class NeuronClient:
    """The neuron at `base` (a URL without a trailing slash). `token` is its bearer token.

    token_source: where the token comes from, for messages.
    trusted: checks its certificate from now on; None: the session's authorities do.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base: str,
        *,
        token: str | None = None,
        token_source: str | None = None,
        trusted: Callable[[], ssl.SSLContext | None] = _by_the_session,
    ) -> None:
        self._session = session
        self._trusted = trusted
        self._unauthorized = "it requires a token: set token_file"
        if token:
            self._unauthorized = f"it rejected the token in {token_source or 'token_file'}"
        self._base = base
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._mask = mask_of(token)

    def masked(self, text: str) -> str:
        """Return a text of the node without its token."""
        return self._mask.text(text)

    async def discovery(self, timeout: float) -> wire.Discovery:
        """GET /discovery."""
        return _decoded(_decode_discovery, await self._get("/discovery", timeout), "/discovery")

    async def health(self, timeout: float) -> wire.Health:
        """GET /health."""
        return _decoded(_decode_health, await self._get("/health", timeout), "/health")

    async def models(self, timeout: float) -> list[wire.Model]:
        """GET /models."""
        return _decoded(_decode_models, await self._get("/models", timeout), "/models")

    async def endpoint(self, model: str, timeout: float) -> str:
        """GET /models/{id}/endpoint: the URL as the node spells it."""
        path = wire.endpoint_path(model)
        url = _decoded(_decode_endpoint, await self._get(path, timeout), path).url
        if len(url) > MAX_URL:  # it is quoted to people when it can't be used
            raise NodeError(f"{path}: a URL of over {MAX_URL} characters")
        return url

    async def load(self, request: wire.LoadRequest) -> str:
        """POST /models/load: `loaded`, or `loading` when the node only took note.

        Takes as long as the node does; the caller bounds it. That somebody else has loaded it
        first is a success.
        """
        path = "/models/load"
        try:
            body = await self._call("POST", path, None, request)
        except NodeError as error:
            if "already loaded" in str(error):
                return wire.LOADED
            raise
        return _decoded(_decode_status, body, path).status

    async def unload(self, request: wire.UnloadRequest, timeout: float) -> str:
        """POST /models/unload."""
        path = "/models/unload"
        return _decoded(
            _decode_status, await self._call("POST", path, timeout, request), path
        ).status

    async def _get(self, path: str, timeout: float) -> bytes:
        return await self._call("GET", path, timeout)

    async def _call(
        self, method: str, path: str, timeout: float | None, body: msgspec.Struct | None = None
    ) -> bytes:
        headers: Mapping[str, str] = self._headers
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            headers = {**headers, "Content-Type": "application/json"}
        try:
            async with self._session.request(
                method,
                # Encoded by us: an id with a slash must stay one segment.
                URL(self._base + path, encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
                ssl=self._trusted() or True,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=timeout or 10.0),
            ) as answer:
                content = self._mask.json(await _read(answer, path))
        except TimeoutError as error:
            raise NodeError(f"{path}: no answer within {timeout or 10.0:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            words = wire.plain(self._mask.text(_words(error)))
            raise NodeError(f"{path}: {words}") from error
        if answer.status == 200:
            return content
        words, code = wire.fault_text(content)
        if answer.status == 401:
            raise NodeError(self._unauthorized, 401, code)
        raise NodeError(f"{path}: {answer.status} {words}".rstrip(), answer.status, code, words)


def outward_socket(
    is_own: Callable[[str, int], bool], address: aiohttp.AddrInfoType
) -> socket.socket:
    """Return a socket for a connection to `address`; a socket factory of a session.

    is_own: whether an IP address and port are a listener of this process. Raises OSError if so.
    """
    family, kind, protocol, _, where = address
    if is_own(str(where[0]), int(where[1])):
        raise OSError(
            None, "that is this gateway itself; set `endpoint` to the address of the neuron"
        )
    return socket.socket(family, kind, protocol)


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error
        if isinstance(reason, ssl.SSLError):
            return f"{error.host}:{error.port}: {_tls_words(reason)}"
        said = os.strerror(reason.errno) if reason.errno else reason.strerror or str(reason)
        return f"can't connect to {error.host}:{error.port}: {said}"
    return str(error) or type(error).__name__


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {error.verify_message}; if an authority of your own "
            "has issued it, set ca_file"
        )
    return f"no TLS: {error.reason or error}; does it listen with https?"


async def _read(answer: aiohttp.ClientResponse, path: str) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > wire.MAX_BODY:
            raise NodeError(f"{path}: an answer of over {wire.MAX_BODY >> 20} MiB")
    return bytes(content)


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes, path: str) -> T:
    try:
        return decoder.decode(body)
    # ValueError is any of msgspec's, and bytes that are no UTF-8.
    except (ValueError, RecursionError) as error:
        raise NodeError(f"{path}: not what a neuron answers: {error}") from error
