"""Logs callers that were refused for a missing or wrong token, without filling the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

PAUSE: Final = 60.0  # seconds between two lines about one address
MAX_ADDRESSES: Final = 256  # addresses that are remembered
MAX_LINES: Final = 20  # lines in PAUSE seconds, about all addresses


class RejectionLog:
    """Writes at most one line per address and minute, with the number of refusals since.

    now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._said: dict[str, float] = {}  # address → time of its last line, the oldest first
        self._unsaid: dict[str, int] = {}  # address → refusals since then
        self._window = float("-inf")
        self._lines = 0

    def note(self, address: str, call: str, *, has_token: bool) -> None:
        """Record one refusal.

        address: of the caller. call: method and path. has_token: a token was sent.
        """
        now = self._now()
        if now - self._said.get(address, float("-inf")) < PAUSE or not self._may_log(now):
            if address in self._unsaid or len(self._unsaid) < MAX_ADDRESSES:
                self._unsaid[address] = self._unsaid.get(address, 0) + 1
            return
        self._said.pop(address, None)
        self._said[address] = now
        if len(self._said) > MAX_ADDRESSES:
            del self._said[next(iter(self._said))]
        before = self._unsaid.pop(address, 0)
        log.warning(
            "rejected %s from %s: %s%s",
            call,
            address,
            "wrong token; it differs from the one in [neuron] token_file"
            if has_token
            else "no token; set token_file for this node in the gateway's configuration",
            f" ({before} more since the last such line)" if before else "",
        )

    def _may_log(self, now: float) -> bool:
        if now - self._window >= PAUSE:
            self._window, self._lines = now, 0
        self._lines += 1
        return self._lines <= MAX_LINES
