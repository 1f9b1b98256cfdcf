"""Values and protocols that `proxy.exchange` takes and returns: a call, its progress, its result.

Nothing here opens a connection or decides anything.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from cortexd.proxy.answer import UpstreamFault, What
from cortexd.wire.sse import UsageRemover
from cortexd.wire.usage import Usage


def _never(status: int) -> bool:
    return False


def _pass_on_any(status: int, content: bytes) -> What | None:
    return None


def _no_words(fault: UpstreamFault) -> bytes:
    return b""


class Silence(Protocol):
    """Sends keep-alives to a client whose answer has not begun."""

    def check(self, since: float, now: float) -> None:
        """Send a keep-alive if one is due. since: when the request went upstream, loop time."""


class Call(msgspec.Struct, frozen=True):
    """One request to one upstream.

    base: where the upstream serves, `http://host:port/path`. target: appended to it.
    lines: header lines sent upstream besides the client's own. answer_lines: sent to the client
        besides the upstream's own.
    connect_timeout, first_byte_timeout, idle_timeout: seconds until the connection is open, until
        the first byte of the answer's body (None: as long as the client waits), and between two.
    is_json: the body is JSON, and is sent as `application/json`.
    is_fresh: use a new connection, even if the pool has one.
    declines: called with the status of the answer; True drops the answer before it is passed on.
    inspected: statuses of answers that, if they are short, are read whole before they are passed
        on. judge: called with the status and the body of such an answer; returns the fault to
        raise instead of passing it on, or None. revise: returns what to pass on in place of such a
        body, or of header lines.
    last_words: returns the last event of an event stream that broke off.
    ends_properly: whether such a stream still ends as HTTP requires, after `last_words`.
    silence: called a few times a second until the first byte of the answer; it may open the stream
        before the answer arrives.
    remover: takes the usage that the client did not ask for out of an event stream again.
    trusted: checks the upstream's certificate; None: the system's authorities do.
    target_key: identifies the upstream for `Exchange.in_progress`; nothing here looks into it.
    """

    base: str
    target: str
    body: bytes
    lines: bytes = b""
    answer_lines: bytes = b""
    connect_timeout: float = 3.0
    first_byte_timeout: float | None = None
    idle_timeout: float = 300.0
    is_json: bool = False
    is_fresh: bool = False
    declines: Callable[[int], bool] = _never
    inspected: Collection[int] = ()
    judge: Callable[[int, bytes], What | None] = _pass_on_any
    revise: Callable[[bytes], bytes] | None = None
    last_words: Callable[[UpstreamFault], bytes] = _no_words
    ends_properly: bool = False
    silence: Silence | None = None
    remover: UsageRemover | None = None
    trusted: ssl.SSLContext | None = None
    target_key: object = None


class InProgress(Protocol):
    """One exchange that has not ended.

    sent: when its request was sent, loop time.
    """

    sent: float

    @property
    def target_key(self) -> object:
        """As given in `Call`."""

    @property
    def is_unanswered(self) -> bool:
        """Whether no byte of the answer's body has arrived."""

    @property
    def quiet_since(self) -> float:
        """Loop time at which the upstream last sent anything, to within a quarter of a second.

        Time in which the client takes nothing counts as activity.
        """

    def interrupt(self, fault: UpstreamFault) -> None:
        """End it with this fault."""


class Carried(msgspec.Struct, frozen=True):
    """Result of an exchange. `first_byte`: of the answer's body, monotonic; None: no body."""

    status: int
    first_byte: float | None
    usage: Usage | None
    is_interrupted: bool
    first_token: float | None = None
