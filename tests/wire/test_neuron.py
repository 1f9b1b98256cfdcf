from __future__ import annotations

import pytest

from cortexd.wire.neuron import endpoint_path, fault_text, plain


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":"no disk"}', ("no disk", None)),
        (b'{"error":"no disk","code":"x"}', ("no disk", "x")),
        (b'{"error":{"message":"no disk","code":"x"}}', ("no disk", "x")),
        (b'{"error":{"message":"no disk","code":500}}', ("no disk", None)),
        (b'{"message":"no disk"}', ("no disk", None)),
        (b"plain\n  words", ("plain words", None)),
        (b'{"error":"No disk. Buy one."}', ("No disk. Buy one", None)),
        (b'{"error":"wait..."}', ("wait", None)),
        (b"[1]", ("[1]", None)),
        (b'{"error":"\\u001b[31mno disk\\u0007"}', ("?[31mno disk?", None)),
        (b'{"error":"no disk","code":"' + b"x" * 1000 + b'"}', ("no disk", "x" * 400)),
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


def test_plain_words_are_one_printable_line_of_a_bounded_length() -> None:
    assert plain("as it is") == "as it is"
    assert plain("It is. ") == "It is"
    assert plain(" two\r\n lines\x1b[2J\u202e ") == "two lines?[2J?"
    assert plain("x" * 11, limit=10) == "x" * 9 + "…"
