"""Loop protection: how many gateways a request has passed through (compare RFC 8586, CDN-Loop)."""

from __future__ import annotations

from typing import Final

from multidict import istr

from cortexd import errors
from cortexd.errors import Refusal

HOPS: Final = istr("X-Cortex-Hops")
MAX_HOPS: Final = 4  # gateways before this one; a fleet behind a fleet has one
# The header line to send upstream, by the number of hops before.
HOP_LINES: Final = tuple(f"{HOPS}: {hops + 1}\r\n" for hops in range(MAX_HOPS + 1))


def count_hops(value: str | None) -> int:
    """Return the number in an `x-cortex-hops` header; 0 if there is none or it is not a number.

    Raises Refusal (loop_detected) when it is over MAX_HOPS.
    """
    if value is None:  # the usual case
        return 0
    hops = int(value[:9]) if value.isascii() and value.isdigit() else 0
    if hops > MAX_HOPS:
        raise Refusal(
            errors.LOOP_DETECTED,
            f"The request has passed through {hops} gateways: an endpoint of a node leads back to "
            "a gateway. Look for the node whose endpoint is a gateway's address, and correct it.",
        )
    return hops
