"""Where the fields of a multipart form stand in its body (RFC 7578). Nothing here changes the form.

The parsing is python-multipart's, which is also what FastAPI reads forms with: most engines see the
fields that we see. It is given the whole body at once and calls back with offsets, so that a file
of many megabytes is searched for the boundary, and neither copied nor decoded.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError, ParseError
from python_multipart.multipart import parse_options_header

# Most forms have a dozen parts with lines of 200 bytes; a long file name in percent-encoded UTF-8
# has up to 4 KiB. Parameters are parsed at half a microsecond a byte: within these bounds the
# worst headers cost 70 ms.
MAX_PARTS: Final = 128
MAX_HEADER: Final = 8 << 10  # bytes of one header line
MAX_PARSED: Final = 128 << 10  # bytes of all lines that are parsed
MAX_TYPE: Final = 1024  # bytes of the Content-Type field with the boundary


class FormError(ValueError):
    """The body is not a form that can be read. The message says why and repeats nothing of it."""


def is_form(content_type: str) -> bool:
    """Whether that Content-Type announces a form that `fields` reads."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def fields(content_type: str, body: bytes, wanted: Collection[str]) -> dict[str, slice]:
    """Where the values of the wanted fields stand in the body: `body[fields(…)["model"]]`.

    Of a repeated field it is the last one, as in the usual engines. A field that is not there has
    no entry, and neither has a file: a part with a filename is no field. Raises FormError.
    """
    boundary = _boundary(content_type)
    # Whatever looks like a boundary is worth some microseconds of the parser's time, part or not.
    if body.count(b"\r\n--" + boundary) > MAX_PARTS:
        raise FormError(f"it has more than {MAX_PARTS} parts")
    finder = _Finder(wanted)
    try:
        finder.parser(boundary).write(body)
    except ParseError as error:
        raise FormError(f"byte {error.offset} is not what a form has there") from error
    if not finder.ended:
        raise FormError("it ends before its closing boundary")
    return finder.found


def _boundary(content_type: str) -> bytes:
    header = content_type.encode(errors="surrogateescape")
    if len(header) > MAX_TYPE:
        raise FormError("its Content-Type is too long")
    boundary = parse_options_header(header)[1].get(b"boundary")
    if not boundary:
        raise FormError("its Content-Type names no boundary")
    return boundary


class _Finder:
    """Notes what the parser calls out as it goes over the body."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self._header = b""
        self._disposition = b""
        self._name = ""
        self._parsed = 0
        self.found: dict[str, slice] = {}
        self.ended = False

    def parser(self, boundary: bytes) -> MultipartParser:
        """A parser that calls this finder. Raises FormError."""
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
                max_header_size=MAX_HEADER,
            )
        except FormParserError as error:
            raise FormError("its boundary is too long") from error

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header == b"content-disposition":
            self._disposition = data[start:end]

    def _headers_finished(self) -> None:
        self._parsed += len(self._disposition)
        if self._parsed > MAX_PARSED:
            raise FormError(f"the headers of its parts are longer than {MAX_PARSED} bytes")
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        self._name = "" if b"filename" in options or name not in self._wanted else name
        if self._name:
            self.found[self._name] = slice(0, 0)  # stays so when there is no data

    def _part_data(self, _: bytes, start: int, end: int) -> None:
        if self._name:
            self.found[self._name] = slice(start, end)

    def _end(self) -> None:
        self.ended = True
