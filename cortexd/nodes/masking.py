"""Masks a node's token in the text that the node sends: errors, reasons, names.

A node may echo its input, in an error for instance. Everything that is read from a node
passes here before it can reach a log, a refusal or an answer of the gateway.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import msgspec

MASK: Final = "***"

# Length from which a secret is not a part of a name by accident.
_LONG: Final = 12
# Fields whose values are names that the gateway acts on: a short secret may be a part of one.
_NAMES: Final = frozenset(
    {
        "capabilities",
        "code",
        "completed",
        "harness",
        "harnesses",
        "id",
        "in_progress",
        "model_id",
        "pending",
        "state",
        "status",
        "url",
    }
)
# Characters that a JSON string may hold as an escape sequence.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")
_MIN_BASE64: Final = 8  # the least number of base64 characters to search for


class SecretMask:
    """Replaces a secret by `***`, also if it is written in base64 or percent-encoded.

    secret: None or "" replaces nothing.
    """

    def __init__(self, secret: str | None) -> None:
        self._forms = _forms(secret) if secret else ()
        self._masks_names = len(secret or "") >= _LONG
        # A part of each form that stands in JSON as it is: what has none of them is left alone.
        self._probes = tuple(
            max(_PLAIN.findall(form), key=len, default="").encode() for form in self._forms
        )

    def text(self, text: str) -> str:
        """Return the text without the secret."""
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        return text

    def json(self, content: bytes) -> bytes:
        """Return a JSON body whose strings are without the secret.

        A body without the secret is returned as it is. What is not JSON is masked as text.
        """
        if not any(probe in content for probe in self._probes):  # the usual case
            return content
        try:
            return msgspec.json.encode(self._masked(msgspec.json.decode(content)))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self.text(content.decode("utf-8", "replace")).encode()

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._masked(item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key in _NAMES and not self._masks_names else self._masked(item)
                for key, item in value.items()
            }
        return value


@lru_cache(maxsize=1024)
def mask_of(secret: str | None) -> SecretMask:
    """Return the mask for a secret, from a cache."""
    return SecretMask(secret)


def _forms(secret: str) -> tuple[str, ...]:
    """Return the spellings of a secret, the longest first."""
    forms = {secret, quote(secret, safe="")}
    for before in range(3):  # bytes encoded before it, `Bearer ` or `user:` for instance
        raw = b"\0" * before + secret.encode()
        # Only the characters that depend on the secret alone.
        start, end = (before * 8 + 5) // 6, len(raw) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            core = encode(raw).decode()[start:end]
            if len(core) >= _MIN_BASE64:
                forms.add(core)
    return tuple(sorted(forms, key=len, reverse=True))
