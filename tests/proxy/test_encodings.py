from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from cortexd.proxy.encodings import FIRST, PIECE, EncodingError, decoded, known_encoding


def bare_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "zstd": ("zstd", zstd.compress),
}
BODIES = {
    "one byte": b"x",
    "small": b'{"model":"m"}',
    "one piece": b"a" * FIRST,
    "one byte more": b"a" * (FIRST + 1),
    "pieces": os.urandom(100) * (PIECE // 30),
    "incompressible": os.urandom(300_000),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_decoder_yields_bounded_pieces(kind: str, body: bytes) -> None:
    encoding, encode = ENCODERS[kind]
    pieces = list(decoded(encoding, encode(body)))
    assert b"".join(pieces) == body
    assert len(pieces[0]) == min(FIRST, len(body))
    assert all(len(piece) == PIECE for piece in pieces[1:-1])
    assert all(len(piece) <= PIECE for piece in pieces)


@given(st.sampled_from(sorted(ENCODERS)), st.binary(), st.integers(0, 3000))
def test_any_body_decodes_to_what_was_encoded(kind: str, body: bytes, times: int) -> None:
    encoding, encode = ENCODERS[kind]
    assert b"".join(decoded(encoding, encode(body * times))) == body * times


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_several_members_are_one_body(kind: str) -> None:
    encoding, encode = ENCODERS[kind]
    body = b"".join(encode(bytes([65 + i]) * 50_000) for i in range(9))
    assert b"".join(decoded(encoding, body)) == b"".join(bytes([65 + i]) * 50_000 for i in range(9))


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_broken_body_is_an_error_wherever_it_breaks(kind: str) -> None:
    encoding, encode = ENCODERS[kind]
    whole = encode(os.urandom(5000))
    for size in (1, 2, 10, 4000, len(whole) - 1):
        with pytest.raises(EncodingError):
            list(decoded(encoding, whole[:size]))
    with pytest.raises(EncodingError):
        list(decoded(encoding, whole + b"more"))
    with pytest.raises(EncodingError):
        list(decoded(encoding, b"{" + whole))


def test_a_body_of_countless_empty_members_is_an_error() -> None:
    with pytest.raises(EncodingError, match="too many parts"):
        list(decoded("gzip", gzip.compress(b"") * 5000))


def test_a_zstd_window_that_no_limit_sees_is_an_error() -> None:
    level = zstd.CompressionParameter
    options = {level.window_log: 27, level.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    body = compressor.compress(os.urandom(1000)) + compressor.flush()
    with pytest.raises(EncodingError):
        list(decoded("zstd", body))


def test_compressed_body_is_decoded_only_as_its_output_is_read() -> None:
    pieces = decoded("gzip", gzip.compress(bytes(200 * PIECE)))
    assert [len(next(pieces)) for _ in range(3)] == [FIRST, PIECE, PIECE]


@pytest.mark.parametrize(
    ("field", "encoding"),
    [
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        (" GZip ", "gzip"),
        ("deflate", "deflate"),
        ("zstd", "zstd"),
        ("br", None),
        ("gzip, gzip", None),
        ("", None),
    ],
)
def test_one_encoding_is_known_by_its_names(field: str, encoding: str | None) -> None:
    assert known_encoding(field) == encoding
