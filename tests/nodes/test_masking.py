from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.nodes.masking import SecretMask, mask_of

SECRET = "s3cret/+<token>&\"'%=="
mask = SecretMask(SECRET)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("", ""),
        ("no such model", "no such model"),
        (f"bad header: Bearer {SECRET}!", "bad header: Bearer ***!"),
        (f"{SECRET} and {SECRET}", "*** and ***"),
        ("?token=s3cret%2F%2B%3Ctoken%3E%26%22%27%25%3D%3D&x", "?token=***&x"),
    ],
)
def test_secret_is_replaced_in_text(text: str, masked: str) -> None:
    assert mask.text(text) == masked


@given(st.binary(max_size=9), st.binary(max_size=9))
def test_secret_is_found_in_base64_whatever_stands_around_it(before: bytes, after: bytes) -> None:
    whole = before + SECRET.encode() + after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = mask.text(f"Basic {encode(whole).decode()}")
        assert "***" in text
        # What is left is what surrounds it, and at most a character at either end.
        assert len(text) <= len("Basic ***") + (len(before) + len(after) + 2) * 4 / 3 + 8


@pytest.mark.parametrize("prefix", ["Bearer ", "", "user:", ":"])
def test_secret_is_found_in_the_base64_of_a_header(prefix: str) -> None:
    encoded = base64.b64encode(f"{prefix}{SECRET}".encode()).decode()
    found = mask.text(encoded)
    assert "***" in found
    assert len(found) < len(encoded) / 2 + len(prefix) * 2


@pytest.mark.parametrize(
    "spelt",
    [
        json.dumps(SECRET),
        json.dumps(SECRET).replace("/", "\\/"),  # PHP
        json.dumps(SECRET).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    ],
)
def test_secret_is_replaced_in_json_however_it_is_escaped(spelt: str) -> None:
    body = f'{{"error": {{"message": {spelt}, "n": [1, {spelt}]}}, "id": {spelt}}}'.encode()
    assert json.loads(mask.json(body)) == {
        "error": {"message": "***", "n": [1, "***"]},
        "id": "***",
    }


def test_body_without_the_secret_is_not_touched() -> None:
    body = b'{ "error" : "no such model" , "x" : 1e400 }'
    assert mask.json(body) is body
    assert SecretMask(None).json(body) is body
    assert SecretMask("").text("text") == "text"


@pytest.mark.parametrize("body", [b"oops: %b", b'{"error": "%b', b"\xff%b", b"[" * 10_000 + b"%b"])
def test_body_that_is_not_json_is_masked_as_text(body: bytes) -> None:
    secret = "0123456789abcdef"
    masked = SecretMask(secret).json(body % secret.encode())
    assert secret.encode() not in masked
    assert b"***" in masked


def test_short_secret_does_not_hide_the_names_that_the_gateway_acts_on() -> None:
    body = b'[{"id":"qwen/qwen3","status":"loaded","error":"bad token qwen"}]'
    assert json.loads(SecretMask("qwen").json(body)) == [
        {"id": "qwen/qwen3", "status": "loaded", "error": "bad token ***"}
    ]


def test_mask_of_a_secret_is_made_once() -> None:
    assert mask_of("x") is mask_of("x")
