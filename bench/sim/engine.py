"""A replica as it truly is: slots, a queue, and a cache of what it has read."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial

from bench.sim.clock import Clock
from bench.sim.things import Host, Sort, Turn

BATCH_COST = 0.06  # by how much one more stream slows each: decoding waits for memory, not for sums
EFFICIENCY = 0.65  # of the memory's bandwidth, as usual engines reach


class Cache:
    """Prefixes that were read, the least recently used ones dropped: a conversation's tokens, and
    the system texts that conversations share."""

    def __init__(self, tokens: int) -> None:
        self._room = tokens
        self._kept: OrderedDict[str, int] = OrderedDict()

    def find(self, turn: Turn) -> int:
        """Tokens of its prompt that need not be read again; the last one always is."""
        found = 0
        for prefix in (turn.system, turn.talk):
            if prefix in self._kept:
                self._kept.move_to_end(prefix)
                found = max(found, self._kept[prefix])
        return min(found, turn.prompt - 1)

    def keep(self, turn: Turn, tokens: int) -> None:
        """Remember the conversation as it now is."""
        for prefix, length in ((turn.system, turn.system_tokens), (turn.talk, tokens)):
            self._room += self._kept.pop(prefix, 0) - length
            self._kept[prefix] = length
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1]


class Job:
    """A request on a replica. `first` and `done` are called once each, `done(cut)` also when the
    replica goes away under it."""

    __slots__ = ("done", "first", "is_over", "turn")

    def __init__(self, turn: Turn, first: Callable[[], None], done: Callable[[bool], None]) -> None:
        self.turn = turn
        self.first = first
        self.done = done
        self.is_over = False


class Engine:
    """A model resident on some devices of a host."""

    def __init__(self, clock: Clock, host: Host, sort: Sort, devices: tuple[int, ...]) -> None:
        self.sort = sort
        self.devices = devices
        self.neighbours: list[Engine] = []  # on the same devices; kept by the machine
        self.running: list[Job] = []
        self.queue: deque[Job] = deque()
        self._clock = clock
        self._cache = Cache(sort.cache)
        spread = 1 + 0.7 * (len(devices) - 1)  # tensor parallel pays for its traffic
        self._prefill = host.prefill * 8 / sort.active * spread
        per_token = sort.active / 8 * 5.0  # GB read; 8 billion parameters in four to five bits
        self._decode = host.bandwidth * EFFICIENCY / per_token * spread
        self._reading_until = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits here."""
        return bool(self.running or self.queue)

    def submit(self, job: Job) -> None:
        """Take in a request."""
        self.queue.append(job)
        self._fill()

    def kill(self) -> Iterator[Job]:
        """Drop all that is here; what was cut."""
        for job in [*self.running, *self.queue]:
            job.is_over = True
            yield job
        self.running.clear()
        self.queue.clear()

    def _fill(self) -> None:
        while self.queue and len(self.running) < self.sort.slots:
            job = self.queue.popleft()
            self.running.append(job)
            job.turn.cached = self._cache.find(job.turn)
            unread = job.turn.prompt - job.turn.cached
            # Prompts are read one after the other: each takes all the sums that there are.
            begins = max(self._clock.now, self._reading_until)
            self._reading_until = begins + unread / self._prefill * self._crowd()
            self._clock.after(self._reading_until - self._clock.now, partial(self._speak, job))

    def _speak(self, job: Job) -> None:
        if job.is_over:
            return
        job.first()
        slowed = (1 + BATCH_COST * (len(self.running) - 1)) * self._crowd()
        self._clock.after(job.turn.answer / self._decode * slowed, partial(self._finish, job))

    def _finish(self, job: Job) -> None:
        if job.is_over:
            return
        job.is_over = True
        self.running.remove(job)
        self._cache.keep(job.turn, job.turn.prompt + job.turn.answer)
        self._fill()
        job.done(False)

    def _crowd(self) -> int:
        """Models that want the same devices at this moment."""
        return 1 + sum(other.is_busy for other in self.neighbours)
