"""Headers and query parameters that hold a client's credentials: none is sent to a node."""

from __future__ import annotations

from typing import Final

# Names of headers with a credential, as the products of this field spell them: `api-key` (Azure),
# `x-api-key` (Anthropic), `x-goog-api-key` (Gemini), `ocp-apim-subscription-key`,
# `cf-access-client-secret`, `x-amz-security-token`, `x-forwarded-access-token` (oauth2-proxy),
# `helicone-auth`, `cookie` and many more. Not `idempotency-key` or `x-ratelimit-remaining-tokens`.
_CREDENTIAL_WORDS: Final = frozenset(
    (
        b"accesstoken apikey assertion auth authentication authorization cookie credential "
        b"credentials jwt password secret token"
    ).split()
)
_CREDENTIAL_KEYS: Final = (b"api-key", b"access-key", b"auth-key", b"subscription-key")
_CREDENTIAL_PARAMETERS: Final = frozenset(
    {"access_token", "api-key", "api_key", "apikey", "auth", "auth_token", "key", "token"}
)


def is_credential(name: bytes) -> bool:
    """Return whether a header of this name, in lower case, holds a client's secret."""
    return name.endswith(_CREDENTIAL_KEYS) or not _CREDENTIAL_WORDS.isdisjoint(name.split(b"-"))


def without_credentials(query: str) -> str:
    """Return a raw query string without the parameters that hold a client's secret."""
    kept = [
        pair
        for pair in query.split("&")
        if pair.partition("=")[0].lower() not in _CREDENTIAL_PARAMETERS
    ]
    return "&".join(kept)
