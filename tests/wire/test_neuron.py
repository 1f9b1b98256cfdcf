from __future__ import annotations

import pytest

from cortexd.wire.neuron import endpoint_path, fault_text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":"no disk"}', ("no disk", None)),
        (b'{"error":"no disk","code":"x"}', ("no disk", "x")),
        (b'{"error":{"message":"no disk","code":"x"}}', ("no disk", "x")),
        (b'{"error":{"message":"no disk","code":500}}', ("no disk", None)),
        (b'{"message":"no disk"}', ("no disk", None)),
        (b"plain\n  words", ("plain words", None)),
        (b"[1]", ("[1]", None)),
        (b"\xff\xfe", ("��", None)),
        (b"", ("", None)),
        (b"[" * 100_000, ("[" * 399 + "…", None)),
    ],
)
def test_an_error_body_yields_the_nodes_words(
    body: bytes, expected: tuple[str, str | None]
) -> None:
    assert fault_text(body) == expected


def test_long_words_are_cut() -> None:
    words, _ = fault_text(b'{"error":"' + b"x" * 1000 + b'"}')
    assert len(words) == 400
    assert words.endswith("…")


def test_the_id_in_an_endpoint_path_is_one_segment() -> None:
    assert endpoint_path("Qwen/Qwen3-8B") == "/models/Qwen%2FQwen3-8B/endpoint"
