"""Who waits for a model, in the order of arrival, and how a wait becomes a claim on a replica."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import itemgetter
from typing import Final

from cortexd.control.registry import Lease
from cortexd.errors import Refusal

BATCH: Final = 64  # waiters that go on in one turn of the loop: others have their turn in between


class Line:
    """One line. Every wait in it ends: with a claim, with None (decide again) or a Refusal."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[Lease | None], float] = {}
        self._granted: deque[tuple[asyncio.Future[Lease | None], Lease | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float | None:
        """Since when its first one waits, loop time."""
        return next(iter(self._waiting.values()), None)

    async def wait(self, since: float | None = None) -> Lease | None:
        """Wait until it is one's turn. `since`: back in one's place, by the time of one's arrival.

        Raises Refusal.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Lease | None] = loop.create_future()
        self._waiting[future] = loop.time() if since is None else since
        if since is not None:
            self._waiting = dict(sorted(self._waiting.items(), key=itemgetter(1)))
        try:
            return await future
        except asyncio.CancelledError:
            # Its turn came in the very moment in which the client left.
            if future.done() and not future.cancelled() and future.exception() is None:
                lease = future.result()
                if lease is not None:
                    lease.release()
            raise
        finally:
            self._waiting.pop(future, None)

    def grant(self, count: int, claim: Callable[[], Lease | None]) -> None:
        """The first `count` go on. Claims are made now, so that nothing comes between; the
        waiters wake in batches."""
        # One that has left stands here until its task has woken up; it takes nobody's turn.
        present = (future for future in self._waiting if not future.done())
        for future in list(islice(present, max(0, count))):
            del self._waiting[future]
            if not self._granted:
                asyncio.get_running_loop().call_soon(self._wake)
            self._granted.append((future, claim()))

    def dissolve(self) -> None:
        """All of them decide again."""
        self.grant(len(self), lambda: None)

    def refuse(self, refusal: Refusal, older_than: float | None = None) -> None:
        """Refuse all, or those who wait since before `older_than`."""
        for future, since in list(self._waiting.items()):
            if older_than is not None and since > older_than:
                break
            del self._waiting[future]
            if not future.done():
                future.set_exception(refusal.again())

    def _wake(self) -> None:
        for _ in range(min(BATCH, len(self._granted))):
            future, lease = self._granted.popleft()
            if not future.done():
                future.set_result(lease)
            elif lease is not None:
                lease.release()
        if self._granted:
            asyncio.get_running_loop().call_soon(self._wake)
