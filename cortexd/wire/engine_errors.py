"""The meaning of an engine's error answer: whether it lacks the model, or its context is too small.

Recognizes the answers of our neuron, OpenAI, Anthropic, vLLM, SGLang, llama.cpp, llama-swap,
Ollama, LM Studio, TGI and TEI. Decides nothing.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

MAX_ERROR_BODY: Final = 16 * 1024  # bytes; a longer answer is not an error that an engine writes
# Statuses of answers that may have one of these meanings. 404 and 400: the model is not there
# (llama.cpp's router says 400); 400, 413 (TEI) and 422 (TGI): the prompt is too long.
STATUSES: Final = frozenset({400, 404, 413, 422})

_ABSENT: Final = re.compile(
    r"not found|not exist|no such|unknown|not loaded|not available|could ?n[o']t find|no router",
    re.IGNORECASE,
)
_OVERFLOW_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_OVERFLOW: Final = re.compile(
    r"(exceed|longer than|greater than|larger than|too large|maximum|must be <=|overflows?)"
    r".{0,160}(context (length|size|window)"
    r"|max(imum)?[_ ](model[_ ]len|seq[_ ]len|total[_ ]tokens))"
    r"|context (length|size|window).{0,80}(exceed|is (only )?\d)"
    r"|prompt is too long|`?inputs`?.{0,40}must have less than \d+ tokens"
    r"|`?inputs`? tokens.{0,40}must be <=",
    re.IGNORECASE | re.DOTALL,
)


def is_unknown_model(status: int, body: bytes, model: str) -> bool:
    """Return whether an answer says that the engine does not have `model`.

    A 404 for a path, a response or a file does not: the error has to carry the code
    `model_not_found`, name the field `model`, or name the model itself as not found.
    """
    if status not in (400, 404):
        return False
    error = _error(body)
    message = _text(error, "message")
    if _text(error, "code") == "model_not_found":
        return True
    if status == 404 and _text(error, "param") == "model":
        return True
    if _text(error, "type") == "not_found_error" and message.startswith("model: "):
        return True  # Anthropic's own
    return "model" in message.lower() and model in message and bool(_ABSENT.search(message))


def is_context_overflow(status: int, body: bytes) -> bool:
    """Return whether an answer says that the request exceeds the model's context length."""
    if status not in (400, 413, 422):
        return False
    error = _error(body)
    if _OVERFLOW_CODES & {_text(error, "code"), _text(error, "type")}:
        return True
    return bool(_OVERFLOW.search(_text(error, "message")))


def _error(body: bytes) -> dict[str, Any]:
    """Return the error object of any dialect; the message is all of it if it is no JSON object."""
    if len(body) > MAX_ERROR_BODY:
        return {}
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = body.decode("utf-8", "replace")
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        if isinstance(error, str):
            return {"message": error, "code": answer.get("code")}
        answer = error
    if isinstance(answer, str):
        return {"message": answer}
    return answer if isinstance(answer, dict) else {}


def _text(error: dict[str, Any], field: str) -> str:
    value = error.get(field)
    return value if isinstance(value, str) else ""
