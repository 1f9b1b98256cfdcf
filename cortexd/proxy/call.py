"""Values and protocols that `proxy.exchange` takes and returns: a call, its progress, its result.

Nothing here opens a connection or decides anything.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from cortexd.proxy.answer import UpstreamFault, What
from cortexd.wire.sse import UsageRemover
from cortexd.wire.usage import Usage


class Policy:
    """Decides which answers are passed on, and how broken streams end: by default all, unexplained.

    Asked once per answer at most, so one object per attempt costs less than a function for each.
    """

    __slots__ = ()

    def declines(self, status: int) -> bool:
        """Return whether an error answer is given up while nothing of it is passed on."""
        return False

    def inspects(self, status: int) -> bool:
        """Return whether an error answer, if short, is read whole and judged before it is passed
        on."""
        return False

    def judge(self, status: int, content: bytes) -> What | None:
        """Return the fault to raise instead of passing on an inspected answer; None: pass it on."""
        return None

    def last_words(self, fault: UpstreamFault) -> bytes:
        """Return the last event of an event stream that broke off."""
        return b""

    def ends_properly(self) -> bool:
        """Return whether such a stream still ends as HTTP says, after its last event."""
        return False


PASS_ON: Final = Policy()


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
    is_mistyped: the body is JSON that the client announced as something else.
    is_fresh: use a new connection, even if the pool has one.
    policy: decides what is passed on. revise: returns what to pass on in place of an inspected
        body, or of header lines.
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
    is_mistyped: bool = False
    is_fresh: bool = False
    policy: Policy = PASS_ON
    revise: Callable[[bytes], bytes] | None = None
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
        """Return whether no byte of the answer's body has arrived."""

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
