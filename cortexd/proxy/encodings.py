"""Decodes the Content-Encoding of request bodies: gzip, deflate, zstd (RFC 9110, section 8.4.1).

A few KiB can decode to gigabytes, so the output comes in pieces: the caller counts them, and stops.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from backports.zstd import ZstdDecompressor

ACCEPTED: Final = "gzip, deflate, zstd"  # as an Accept-Encoding field lists them
FIRST: Final = 32 << 10  # bytes of the first piece: decoding them costs less than a thread, 0.1 ms
PIECE: Final = 1 << 20  # bytes of any other piece
FEED: Final = 64 << 10  # bytes of input at a time
_MOST_STREAMS: Final = 1000  # members or frames of one body: empty ones take time and yield nothing
_ENCODINGS: Final = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "zstd": "zstd"}
# Window of a zstd frame, log2 of bytes: what a decoder has to support (RFC 9659). A larger one
# would be memory that no limit here sees.
_ZSTD_WINDOW_LOG: Final = 23


class EncodingError(ValueError):
    """The body does not match its Content-Encoding. The message says why."""


class _Stream(Protocol):
    """One member or frame."""

    @property
    def eof(self) -> bool:
        """Return whether its end was reached."""

    @property
    def unused_data(self) -> bytes:
        """Input beyond that end."""

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes:
        """Decode a part; the rest of the input is in `unconsumed_tail`, or kept inside."""


def known_encoding(field: str) -> str | None:
    """Return the one encoding that a Content-Encoding field names; None: it is not supported."""
    return _ENCODINGS.get(field.strip().lower())


def is_loaded(encoding: str) -> bool:
    """Return whether decoding can begin without importing a module."""
    return (
        encoding != "zstd" or "backports.zstd" in sys.modules or "compression.zstd" in sys.modules
    )


def decoded(encoding: str, body: bytes) -> Iterator[bytes]:
    """Decode `body` piece by piece: FIRST bytes, then PIECE each; the last one may be shorter.

    Raises EncodingError from any step.
    """
    view, at = memoryview(body), 0
    stream = _stream(encoding, body)
    found: list[bytes] = []
    size, most, streams = 0, FIRST, 1
    rest: bytes | memoryview = b""  # of the input, left over by the decoder at the size limit
    while True:
        data = rest
        if not data:
            data = view[at : at + FEED]
            at += len(data)
        try:
            piece = stream.decompress(data, most - size)
        except Exception as error:  # zlib.error or ZstdError
            raise EncodingError("its compressed data is broken") from error
        rest = getattr(stream, "unconsumed_tail", b"")
        found.append(piece)
        size += len(piece)
        if size >= most:
            yield b"".join(found)
            found, size, most = [], 0, PIECE
        if stream.eof:
            at -= len(stream.unused_data)
            if at == len(view):
                break
            if encoding == "deflate":
                raise EncodingError("something follows its end")
            streams += 1
            if streams > _MOST_STREAMS:
                raise EncodingError("it is made of too many parts")
            stream, rest = _stream(encoding, body), b""
        elif not piece and not data:
            raise EncodingError("it ends before its end is reached")
    if size:
        yield b"".join(found)


def _stream(encoding: str, body: bytes) -> _Stream:
    if encoding == "gzip":
        return zlib.decompressobj(31)
    if encoding == "deflate":
        # zlib's format by the RFC, and raw deflate by the habit of many clients.
        return zlib.decompressobj(15 if _has_zlib_header(body) else -15)
    return _zstd()


def _has_zlib_header(body: bytes) -> bool:
    return body[0] & 0x8F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def _zstd() -> ZstdDecompressor:
    if sys.version_info >= (3, 14):
        from compression.zstd import DecompressionParameter, ZstdDecompressor
    else:
        from backports.zstd import DecompressionParameter, ZstdDecompressor
    return ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
