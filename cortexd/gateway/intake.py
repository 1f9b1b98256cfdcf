"""Reading a request: its id, and the few fields of its body that routing looks at."""

from __future__ import annotations

import random
import re
from typing import Final

import msgspec
from aiohttp import web
from multidict import istr

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.wire import multipart
from cortexd.wire.openai import RequestView

MAX_MODEL_NAME: Final = 512  # characters; longer than any real id, short enough to quote back
MAX_COLONS: Final = 250_000  # in a body that is taken apart: 0.1 s and 60 MB if each is a field's

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FIELD: Final = re.compile(r"`\$\.(\w+)`$")
# A form has only text; these are the words that FastAPI's engines take for a boolean.
_BOOLEANS: Final[dict[bytes, bool | None]] = {
    **dict.fromkeys((b"true", b"1", b"on", b"yes", b"t", b"y"), True),
    **dict.fromkeys((b"false", b"0", b"off", b"no", b"f", b"n"), False),
    b"": None,
}


_GIVEN_ID: Final = istr("X-Request-Id")  # folded once, not at every look
_PROCESS: Final = f"req_{random.getrandbits(64):016x}"


class _Model(msgspec.Struct):
    model: msgspec.Raw


_decode_view: Final = msgspec.json.Decoder(RequestView).decode
_decode_model: Final = msgspec.json.Decoder(_Model).decode
_decode_raw: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_options: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


def request_id(request: web.BaseRequest) -> str:
    """The caller's own id if it is a plain one, else a new one."""
    given = request.headers.get(_GIVEN_ID)
    return given if given and _REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """Return an id that no other request has: 64 random bits of this process, and 64 of its own."""
    return f"{_PROCESS}{random.getrandbits(64):016x}"


def parse_view(body: bytes, content_type: str = "application/json") -> RequestView:
    """The fields that routing reads, from JSON or a multipart form.

    Raises Refusal with the field at fault; its words repeat nothing of the body.
    """
    is_form = content_type != "application/json" and multipart.is_form(content_type)
    view = _form_view(body, content_type) if is_form else _json_view(body)
    if not view.model:
        raise _missing_model()
    if len(view.model) > MAX_MODEL_NAME:
        raise Refusal(
            errors.INVALID_VALUE,
            f"The `model` is longer than {MAX_MODEL_NAME} characters.",
            param="model",
        )
    return view


def with_model(body: bytes, model: str, content_type: str = "application/json") -> bytes:
    """The body with its `model` replaced; nothing else changes.

    Only where the alias stands in a JSON body more than once, the space between its values is
    normalised too. Raises Refusal on what `parse_view` could read but this can't.
    """
    if multipart.is_form(content_type):
        value = _form_fields(body, content_type)["model"]
        return b"".join((body[: value.start], model.encode(), body[value.stop :]))
    try:
        old, new = bytes(_decode_model(body).model), msgspec.json.encode(model)
        at = body.find(old)
        if body.find(old, at + 1) < 0:
            return b"".join((body[:at], new, body[at + len(old) :]))
        # Which one it is can't be told by looking: that would be quadratic in a hostile body.
        if body.count(b":") > MAX_COLONS:
            raise Refusal(
                errors.INVALID_VALUE,
                "The body has too many fields to replace an alias in it; send the model's own id.",
                param="model",
            )
        fields = _decode_raw(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(error) from error
    fields["model"] = msgspec.Raw(new)
    return msgspec.json.encode(fields)


def with_usage(body: bytes) -> bytes | None:
    """The body of a stream that asks for its token counts; None: it did so by itself."""
    try:
        fields = _decode_raw(body)
        options = _decode_options(fields.get("stream_options", b"null")) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # whatever that is, it is the engine's to refuse
    if bytes(options.get("include_usage", b"")) == b"true":
        return None
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def _json_view(body: bytes) -> RequestView:
    try:
        return _decode_view(body)
    except msgspec.ValidationError as error:
        field = _FIELD.search(str(error))
        if field is not None and field[1] != "model":
            said = str(error).partition(" - at")[0]
            raise Refusal(
                errors.INVALID_VALUE, f"The field `{field[1]}` is wrong: {said}.", param=field[1]
            ) from error
        raise _missing_model() from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid_json(error) from error


def _form_view(body: bytes, content_type: str) -> RequestView:
    fields = _form_fields(body, content_type)
    try:
        model = body[fields.get("model", slice(0))].decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            errors.INVALID_VALUE, "The form's `model` is not UTF-8.", param="model"
        ) from error
    stream = body[fields.get("stream", slice(0))][:8].lower()
    if stream not in _BOOLEANS:
        raise Refusal(
            errors.INVALID_VALUE, "The form's `stream` must be true or false.", param="stream"
        )
    return RequestView(model, _BOOLEANS[stream])


def _form_fields(body: bytes, content_type: str) -> dict[str, slice]:
    try:
        return multipart.fields(content_type, body, ("model", "stream"))
    except multipart.FormError as error:
        raise Refusal(
            errors.BAD_REQUEST,
            f"The body is not the form that its Content-Type announces: {error}.",
        ) from error


def _missing_model() -> Refusal:
    return Refusal(
        errors.MISSING_MODEL,
        "The request needs a `model`, a string; GET /v1/models lists what there is.",
        param="model",
    )


def _invalid_json(error: Exception) -> Refusal:
    if isinstance(error, RecursionError):
        said = "nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        said = "not UTF-8"
    else:
        said = str(error)
    return Refusal(errors.INVALID_JSON, f"The request body is not valid JSON: {said}.")
