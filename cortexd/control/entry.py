"""An entry of the load table: one load or watch, its state, and those who wait for it.

Only the table changes one; others read how far it is, or wait for its end.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from cortexd.control.lifecycle import ENDS, Event, State, after
from cortexd.control.line import Line
from cortexd.control.turns import now
from cortexd.errors import Refusal
from cortexd.wire.neuron import Model


class Patience(Protocol):
    """Who is told what a request waits for, while it does."""

    def waits_for(self, load: Entry | None) -> None:
        """It waits for this; None: for its turn after a load."""

    def goes_on(self) -> None:
        """It waits no more."""


class Entry:
    """One load, or the watch over a load that a node began by itself, and its waiting requests.

    node: where; None while that is not known. deadline: loop time. stage, fraction: its progress,
        in the node's words. is_ours: the gateway asked for it. is_unasked: for a copy that is kept,
        not for a request. may_evict: whether other models may be unloaded for it; set once a
        request joins that may. refusal: what it ended with, if with one.
    epoch: of the node when it was asked. is_called: the call that asked is open. restarted: loop
        time since when the node seems to have restarted. still: seconds without progress, as far as
        the node reported; contact: its last report, monotonic. See `supervision`.
    """

    def __init__(
        self,
        model: str,
        node: str | None,
        deadline: float,
        *,
        is_ours: bool,
        is_unasked: bool = False,
        may_evict: bool = True,
    ) -> None:
        self.model = model
        self.node = node
        self.deadline = deadline
        self.is_ours = is_ours
        self.is_unasked = is_unasked
        self.may_evict = may_evict
        self.state = State.QUEUED
        self.line = Line()
        self.began = now()
        self.stage: str | None = None
        self.fraction: float | None = None
        self.epoch = 0
        self.is_called = False
        self.restarted: float | None = None
        self.still = 0.0
        self.contact: float | None = None
        self.job: asyncio.Task[None] | None = None
        self.refusal: Refusal | None = None
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Entry {self.model!r} on {self.node} {self.state.value} waiting={len(self.line)}>"

    @property
    def has_ended(self) -> bool:
        """Whether nobody can join it any more."""
        return self.state in ENDS

    def happens(self, event: Event) -> None:
        """Go on to the next state. Raises IllegalTransition."""
        self.state = after(self.state, event)
        if self.has_ended:
            self._over.set()

    def begins(self, epoch: int) -> None:
        """Its node, which has restarted so often, is asked to load it. Raises IllegalTransition."""
        self.epoch, self.began = epoch, now()
        self.happens(Event.PLACED)

    def notes(self, info: Model | None) -> bool:
        """Take in how far its node says it is; whether that is news."""
        progress = info.progress if info is not None else None
        if progress is None or (progress.stage, progress.fraction) == (self.stage, self.fraction):
            return False
        self.stage, self.fraction, self.still = progress.stage, progress.fraction, 0.0
        return True

    def stop(self) -> None:
        """End the job, whatever it is at."""
        if self.job is not None:
            self.job.cancel()

    async def wait_over(self) -> None:
        """Until it has ended, whatever the end."""
        await self._over.wait()
