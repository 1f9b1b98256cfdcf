from __future__ import annotations

import asyncio
import io
import os
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.policy import HTTP
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.wire.multipart import (
    MAX_HEADER,
    MAX_PARSED,
    MAX_PARTS,
    MAX_TYPE,
    FormError,
    fields,
    is_form,
)

FORM = "multipart/form-data; boundary=b"
WANTED = ("model", "stream")


def part(headers: bytes, value: bytes = b"m") -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + value + b"\r\n"


def named(name: bytes, value: bytes = b"m", more: bytes = b"") -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"' + more, value)


def values(body: bytes, content_type: str = FORM) -> dict[str, bytes]:
    return {name: body[at] for name, at in fields(content_type, body, WANTED).items()}


MODEL = named(b"model")
FILE = named(b"file", os.urandom(3000) + b"\r\n--\r\n--x\r\n", b'; filename="a.mp3"')
END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("multipart/form-data; boundary=x", True),
        ("Multipart/Form-Data ;boundary=x", True),
        ("multipart/form-data", True),
        ("multipart/mixed; boundary=x", False),
        ("multipart/form-data-x; boundary=x", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_a_form_is_told_by_its_content_type(content_type: str, form: bool) -> None:
    assert is_form(content_type) is form


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (MODEL + FILE + END, {"model": b"m"}),
        (FILE + MODEL + END, {"model": b"m"}),
        (FILE + MODEL + FILE + named(b"stream", b"true") + END, {"model": b"m", "stream": b"true"}),
        (MODEL + named(b"model", b"last") + END, {"model": b"last"}),
        (MODEL + named(b"model", b"") + END, {"model": b""}),
        (FILE + END, {}),
        (END, {}),
        (MODEL + b"--b--", {"model": b"m"}),
        (MODEL + END + named(b"model", b"epilogue"), {"model": b"m"}),
        (b"--b \t\r\n" + MODEL.removeprefix(b"--b\r\n") + END, None),
        (named(b"file") + b"--b \t\r\n" + MODEL.removeprefix(b"--b\r\n") + END, {"model": b"m"}),
        (named(b"model", b"a\r\nb\nc\r\n--x") + END, {"model": b"a\r\nb\nc\r\n--x"}),
        (named(b"model", b"\r\n--bx") + END, {"model": b"\r\n--bx"}),
        # Who it is, in any spelling.
        (part(b"content-disposition:form-data;name=model") + END, {"model": b"m"}),
        (part(b"CONTENT-DISPOSITION: form-data ; NAME=model") + END, {"model": b"m"}),
        (part(b"X-A: b\r\nContent-Disposition: form-data; x=y; name=model") + END, {"model": b"m"}),
        (
            part(b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"') + END,
            {"model": b"m"},
        ),
        (named(b"Model") + named(b"model ") + named(b"models") + END, {}),
        (part(b"X-A: name=model") + part(b"Content-Disposition: form-data") + END, {}),
        # RFC 7578, section 4.2 knows no `name*`; engines do not read it.
        (part(b"Content-Disposition: form-data; name*=utf-8''model") + END, {}),
        (part(b"Content-Disposition: form-data; name=\"file\"; name*=utf-8''model") + END, {}),
        # A file is no field, whatever it is called.
        (named(b"model", b"x", b'; filename="model"') + END, {}),
        (named(b"model", b"x", b'; filename=""') + END, {}),
        (MODEL + named(b"model", b"x", b'; filename="model"') + END, {"model": b"m"}),
        (part(b'Content-Disposition: form-data; name="file"; filename="; name=model"') + END, {}),
    ],
)
def test_a_field_is_found_wherever_it_stands(body: bytes, found: dict[str, bytes] | None) -> None:
    if found is None:
        with pytest.raises(FormError):
            values(body)
    else:
        assert values(body) == found


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=(a' b)",
        'multipart/form-data; boundary="(a\' b)"',
        'MULTIPART/FORM-DATA; charset=utf-8; BOUNDARY="(a\' b)"; x=y',
    ],
)
def test_the_boundary_is_read_quoted_and_unquoted(content_type: str) -> None:
    body = (MODEL + END).replace(b"--b", b"--(a' b)")
    assert values(body, content_type) == {"model": b"m"}


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", MODEL + END, "names no boundary"),
        ("multipart/form-data; boundary=", MODEL + END, "names no boundary"),
        ("multipart/form-data; boundary*=b", MODEL + END, "names no boundary"),
        (f"multipart/form-data; boundary={'b' * 300}", MODEL + END, "boundary is too long"),
        (f"{FORM}; x={'y' * MAX_TYPE}", MODEL + END, "Content-Type is too long"),
        (FORM, b"", "ends before its closing boundary"),
        (FORM, MODEL, "ends before its closing boundary"),
        (FORM, MODEL + b"--b-", "ends before its closing boundary"),
        (FORM, FILE[:-2], "ends before its closing boundary"),
        (FORM, b'{"model":"m"}', "byte 0 is not"),
        (FORM, (MODEL + END).replace(b"\r\n", b"\n"), "byte 3 is not"),
        (FORM, b"preamble\r\n" + MODEL + END, "byte 0 is not"),
        (FORM, part(b"no colon") + END, "is not what a form has there"),
        (FORM, part(b"x: " + b"y" * MAX_HEADER) + END, "is not what a form has there"),
        (FORM, part(b"\r\n".join([b"x: y"] * 9)) + END, "is not what a form has there"),
        (FORM, MODEL * (MAX_PARTS + 1) + END, f"more than {MAX_PARTS} parts"),
        (FORM, named(b"file", b"\r\n--bx" * MAX_PARTS) + END, f"more than {MAX_PARTS} parts"),
    ],
)
def test_what_is_no_form_is_refused_in_words(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(FormError, match=words):
        values(body, content_type)


@pytest.mark.parametrize(
    "name",
    [
        "Aufnahme " * 110,
        "ä€😀" * 80,
        "会議の録音" * 80,
    ],
)
def test_a_file_name_may_be_as_long_as_file_systems_and_engines_take(name: str) -> None:
    """255 characters of UTF-8 are up to 3 KiB as RFC 5987 has browsers and httpx encode them."""
    encoded = quote(name)
    assert len(encoded) > 1024 or len(name) > 900
    for more in (
        f'; filename="{name}"',
        f"; filename*=utf-8''{encoded}",
        f'; filename="{encoded}"',
    ):
        assert values(MODEL + named(b"file", b"x", more.encode()) + END) == {"model": b"m"}
        assert values(named(b"file", b"x", more.encode()) + MODEL + END) == {"model": b"m"}


def test_all_headers_that_are_parsed_are_bounded_together() -> None:
    long = named(b"file", b"x", b'; filename="' + b"y" * 8000 + b'"')
    few = MAX_PARSED // 8100
    assert values(long * few + MODEL + END) == {"model": b"m"}
    with pytest.raises(FormError, match="the headers of its parts are longer"):
        values(long * (few + 2) + MODEL + END)


def test_as_many_parts_as_are_allowed_are_read() -> None:
    assert values(named(b"other") * (MAX_PARTS - 1) + MODEL + END) == {"model": b"m"}


def test_a_content_type_of_any_bytes_is_no_error_of_ours() -> None:
    # aiohttp decodes headers so that what is not UTF-8 survives as a surrogate.
    assert values(MODEL.replace(b"--b", b"--\xff") + b"--\xff--", FORM[:-1] + "\udcff") == {
        "model": b"m"
    }


names = st.sampled_from(["model", "stream", "file", "Model", "modél", "model[]", "a b"])
texts = st.text() | st.sampled_from(["\r\n--", "--", "\r\n--b", "\r", "\n"])
binary = st.binary() | st.sampled_from([b"\r\n--", b'\r\n\r\nContent-Disposition: name="model"'])
filenames = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=50)


@given(st.lists(st.tuples(names, texts, st.none()) | st.tuples(names, binary, filenames)))
def test_whatever_aiohttp_encodes_comes_back(parts: list[tuple[str, str | bytes, str]]) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    expected = {}
    for name, value, filename in parts:
        if isinstance(value, str):
            form.add_field(name, value)
            if name in WANTED:
                expected[name] = value.encode()
        else:
            form.add_field(name, io.BytesIO(value), filename=filename)
    payload = form()
    with asyncio.Runner() as runner:
        body = runner.run(payload.as_bytes())
    if not parts:  # aiohttp writes nothing at all for an empty form
        assert body in (b"", b"--" + payload.boundary.encode() + b"--\r\n")
        return
    assert values(body, payload.headers["Content-Type"]) == expected


plain = st.text(st.characters(min_codepoint=32, max_codepoint=126)).filter(
    lambda text: not text.startswith("--")
)


@given(st.lists(st.tuples(st.sampled_from(["model", "stream", "file"]), plain), min_size=1))
def test_whatever_the_standard_library_encodes_comes_back(parts: list[tuple[str, str]]) -> None:
    form = MIMEMultipart("form-data", policy=HTTP)
    for name, value in parts:
        field = MIMEBase("text", "plain")
        field.add_header("Content-Disposition", "form-data", name=name)
        field.set_payload(value)
        form.attach(field)
    _, _, body = form.as_bytes().partition(b"\r\n\r\n")
    expected = {name: value.encode() for name, value in parts if name in WANTED}
    assert values(body, form["Content-Type"]) == expected


scraps = st.lists(
    st.sampled_from([b"--b", b"\r\n", b"\n", b"\r", b"--", b"-", b":", b";", b'"', b"\\", b" "])
    | st.sampled_from([b'Content-Disposition: form-data; name="model"', b'; filename="x"', b"\0"])
    | st.binary(max_size=4)
).map(b"".join)


@given(scraps, st.sampled_from([FORM]) | st.text().map(lambda text: FORM + text))
def test_no_bytes_do_any_harm(body: bytes, content_type: str) -> None:
    for whole in (body, b"--b\r\n" + body, MODEL + b"--b\r\n" + body + b"\r\n--b--"):
        try:
            found = fields(content_type, whole, WANTED)
        except FormError as error:
            assert str(error).isascii()
        else:
            assert found.keys() <= set(WANTED)
            assert all(0 <= at.start <= at.stop <= len(whole) for at in found.values())
