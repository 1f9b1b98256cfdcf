"""Reading a request: its id, its body within bounds, and the few fields that routing looks at."""

from __future__ import annotations

import random
import re
from typing import Final

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.wire.openai import RequestView

MAX_MODEL_NAME: Final = 512  # characters; longer than any real id, short enough to quote back

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FIELD: Final = re.compile(r"`\$\.(\w+)`$")
_decode_view: Final = msgspec.json.Decoder(RequestView).decode
_decode_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def request_id(request: web.BaseRequest) -> str:
    """The caller's own id if it is a plain one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{random.getrandbits(128):032x}"


async def read_body(request: web.BaseRequest, max_body: int) -> bytes:
    """The whole body, of at most `max_body` bytes; a longer one is refused before it is read."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(
            errors.UNSUPPORTED_ENCODING,
            f"The body's Content-Encoding {encoding[:32]!r} is not supported; send it as it is.",
        )
    too_large = Refusal(
        errors.REQUEST_TOO_LARGE,
        f"The request body is larger than {max_body} bytes; send a smaller one or raise "
        "[gateway] max_body.",
    )
    if (request.content_length or 0) > max_body:
        raise too_large
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer itself has been sent
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error


def parse_view(body: bytes) -> RequestView:
    """The fields that routing reads. Raises Refusal with the field at fault."""
    try:
        view = _decode_view(body)
    except msgspec.ValidationError as error:
        field = _FIELD.search(str(error))
        if field is not None and field[1] != "model":
            said = str(error).partition(" - at")[0]
            raise Refusal(
                errors.INVALID_VALUE, f"The field `{field[1]}` is wrong: {said}.", param=field[1]
            ) from error
        raise Refusal(
            errors.MISSING_MODEL,
            "The request needs a `model`, a string; GET /v1/models lists what there is.",
            param="model",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(
            errors.INVALID_JSON, f"The request body is not valid JSON: {said}."
        ) from error
    if len(view.model) > MAX_MODEL_NAME:
        raise Refusal(
            errors.INVALID_VALUE,
            f"The `model` is longer than {MAX_MODEL_NAME} characters.",
            param="model",
        )
    return view


def with_model(body: bytes, model: str) -> bytes:
    """The body with its `model` replaced; every other value stays verbatim, in its order."""
    fields = _decode_raw(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
