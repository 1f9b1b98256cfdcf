"""The single-flight table: however many requests want a cold model, one load brings it.

An entry is a job of its own with everybody else waiting on it. The job belongs to no connection:
a client that leaves never cancels it, and one that comes back joins it. Beside loads the table
holds waits for what others have under way (a load started elsewhere, a recovery, our own start),
so that a thousand waiters are one watcher there too. One tick looks at every deadline, so that no
job, however it is lost, keeps anybody waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

from cortexd import errors
from cortexd.config.current import Current
from cortexd.control.entry import Entry, Patience
from cortexd.control.events import Events
from cortexd.control.lifecycle import Event, State
from cortexd.control.line import Line
from cortexd.control.loader import Loader, lacks_model
from cortexd.control.outcomes import Outcomes
from cortexd.control.poller import Poller
from cortexd.control.refusals import no_room_in_time, recovering, shutting_down, still_loading
from cortexd.control.registry import Lease, Registry
from cortexd.control.room import NotNeeded
from cortexd.control.supervision import loss
from cortexd.control.turns import Turns, now
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.fleet.placement import Placement
from cortexd.fleet.routing import Load, Query, Serve, Wait, decide
from cortexd.fleet.snapshot import Node, Replica
from cortexd.metrics import Metrics
from cortexd.nodes.client import NodeError
from cortexd.wire.neuron import LOADED

RECOVERY_BOUND: Final = 10.0  # seconds to wait for a model that its node is rebuilding
TICK: Final = 0.5  # seconds between two looks at deadlines and progress

_AT_IT: Final = frozenset({State.LOADING, State.TIMED_OUT})  # as far as the node is concerned


class LoadTable:
    """Loads under way, one per model, and the back-off of those that failed."""

    def __init__(
        self,
        registry: Registry,
        loader: Loader,
        poller: Poller,
        metrics: Metrics,
        events: Events,
        current: Current,
    ) -> None:
        self._registry = registry
        self._loader = loader
        self._poller = poller
        self._outcomes = Outcomes(registry, metrics, events)
        self._current = current
        self._tasks = Tasks()
        self._entries: dict[str, Entry] = {}
        # Ours, as the ledger has them; past the bound too, since the node may still be at it.
        self._loads: dict[str, Entry] = {}
        self._turns = Turns(registry)
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._entries) + len(self._turns)

    @property
    def _timeout(self) -> float:
        """Seconds after which waiters are told to come back; the load itself is the node's."""
        return self._current.config.loading.timeout

    def start(self) -> None:
        """Begin to look at deadlines."""
        self._tasks.spawn("loads", self._keep_looking())

    def entry(self, model: str) -> Entry | None:
        """What is under way for a model."""
        return self._entries.get(model)

    def entries(self) -> list[Entry]:
        """All that is under way: loads past their bound too, since their nodes are still at it."""
        late = [entry for entry in self._loads.values() if entry.has_ended]
        return [*self._entries.values(), *late]

    def waiting(self) -> dict[str, int]:
        """How many requests wait, by model (known ones; the rest is no label)."""
        snapshot = self._registry.snapshot
        counts: dict[str, int] = {}
        for model, line in self._lines():
            if model in snapshot.replicas or model in snapshot.catalogue.profiles:
                counts[model] = counts.get(model, 0) + len(line)
        return counts

    def longest_wait(self) -> float:
        """Seconds for which the oldest waiter waits; 0 when there is none."""
        since = [line.oldest for _, line in self._lines() if line.oldest is not None]
        return max(0.0, now() - min(since)) if since else 0.0

    # What requests ask for.

    async def wait(
        self, decision: Load | Wait, patience: Patience | None = None, *, may_evict: bool = True
    ) -> Lease | None:
        """Join the model's load, or start it, and wait in its queue.

        may_evict: whether other models may be unloaded for this request.

        Return a lease on the replica that is resident now, or None: decide again.
        Raises Refusal when the wait ends without one.
        """
        entry = self.join(decision, may_evict=may_evict)
        return await self._stand_in(entry.line, decision.model, entry, patience)

    async def wait_turn(
        self, replica: Replica, since: float | None = None, patience: Patience | None = None
    ) -> Lease | None:
        """Wait behind those whose turn has not come, or (`since`) where one stood before.

        Raises Refusal.
        """
        self._check_open()
        if since is not None and now() - since >= self._timeout:
            raise still_loading(replica.model, replica.node)
        line = self._turns.line_of(replica)
        return await self._stand_in(line, replica.model, None, patience, since)

    async def _stand_in(
        self,
        line: Line,
        model: str,
        entry: Entry | None,
        patience: Patience | None,
        since: float | None = None,
    ) -> Lease | None:
        if len(line) >= self._current.config.loading.max_waiting:
            raise Refusal(
                errors.LOAD_QUEUE_FULL,
                f"{len(line)} requests wait for the model {model!r} already ([loading] "
                "max_waiting); try again in a moment.",
            )
        if patience is not None:
            patience.waits_for(entry)
        try:
            return await line.wait(since)
        finally:
            if patience is not None:
                patience.goes_on()

    # What operators ask for (`control.operator`).

    def join(
        self, decision: Load | Wait, *, unasked: bool = False, may_evict: bool = True
    ) -> Entry:
        """What is under way for a model; what the decision asks for when nothing is.

        unasked: for a copy that is kept, not for a request.

        Raises Refusal once the gateway is closing.
        """
        self._check_open()
        entry = self._entries.get(decision.model)
        if entry is not None:
            entry.may_evict = entry.may_evict or may_evict
            return entry
        if isinstance(decision, Load):
            return self._load(
                decision.placement, decision.model, unasked=unasked, may_evict=may_evict
            )
        return self._watch(decision)

    def ours(self, model: str) -> Entry | None:
        """A load of ours that its node may still be at, past its bound or not."""
        return self._loads.get(model)

    def cancel(self, entry: Entry) -> None:
        """Have nothing more to do with a load; its node is to be told by the caller, behind a
        gate."""
        self._outcomes.cancelled(entry)
        if not entry.has_ended:
            words = f"The load of {entry.model!r} was cancelled by an operator; ask for it again."
            refusal = Refusal(errors.COLD_LOAD_FAILED, words, retry_after=1)
            self._end(entry, Event.CANCEL, refusal)
        entry.stop()
        self._settle(entry)

    def abandon(self, node: str) -> None:
        """Have nothing more to do with loads on a node that is another one now; whoever waits for
        them decides again, and nothing is held against it."""
        for entry in [entry for entry in self._loads.values() if entry.node == node]:
            if not entry.has_ended:
                self._end(entry, Event.CANCEL)
            entry.stop()
            self._settle(entry)

    async def close(self) -> None:
        """Tell the waiters at once. The loads themselves are left to their nodes."""
        self._is_closed = True
        for entry in list(self._entries.values()):
            self._end(entry, Event.CANCEL, shutting_down())
        for _, line in self._turns.lines():
            line.refuse(shutting_down())
        self._turns.close()
        await self._tasks.close()

    def _check_open(self) -> None:
        """Those who wake up while we close must not begin to wait again: nobody would end it."""
        if self._is_closed:
            raise shutting_down()

    # Jobs.

    def _load(self, placement: Placement, model: str, *, unasked: bool, may_evict: bool) -> Entry:
        entry = Entry(
            model,
            placement.node,
            now() + self._timeout,
            is_ours=True,
            is_unasked=unasked,
            may_evict=may_evict,
        )
        self._loads[model] = entry
        self._registry.ledger.loading[model] = placement.node
        self._loader.reserve(model, placement)
        return self._spawn(entry, self._do_load(entry, placement))

    def _watch(self, wait: Wait) -> Entry:
        bound = self._timeout
        if wait.reason == "recovering":
            bound = min(bound, RECOVERY_BOUND)
        entry = Entry(wait.model, wait.node, now() + bound, is_ours=False)
        return self._spawn(entry, self._do_watch(entry, wait))

    def _spawn(self, entry: Entry, work: Coroutine[None, None, None]) -> Entry:
        self._entries[entry.model] = entry
        entry.job = self._tasks.spawn(f"load {entry.model}", work)
        entry.job.add_done_callback(lambda _: self._job_is_over(entry))
        return entry

    def _job_is_over(self, entry: Entry) -> None:
        self._settle(entry)
        if not entry.has_ended:  # it crashed: whoever waits must not pay for that
            self._end(entry, Event.FAULT)

    def _settle(self, entry: Entry, *, failed: bool = False) -> None:
        """Its node is not at it any more: those who watch it decide again."""
        if self._loads.get(entry.model) is entry:
            del self._loads[entry.model]
            del self._registry.ledger.loading[entry.model]
            self._loader.release(entry, failed=failed)
            self._registry.wake()

    async def _do_load(self, entry: Entry, placement: Placement) -> None:
        entry.happens(Event.STARTED)
        try:
            await self._loader.bring(entry, placement, lambda node: self._moves(entry, node))
        except NodeError as error:
            if lacks_model(error):
                self._be_impossible(entry, error.words)
            else:
                self._fail(entry, error.words)
        except Refusal as refusal:
            self._settle(entry, failed=True)
            self._end(entry, Event.FAULT, refusal)
        except NotNeeded as elsewhere:
            self._settle(entry)
            entry.happens(Event.PLACED)
            self._be_ready(entry, elsewhere.node)
        else:
            self._succeed(entry)
        self._poller.nudge(entry.node or "")

    def _moves(self, entry: Entry, node: str) -> None:
        entry.node = self._registry.ledger.loading[entry.model] = node

    def _succeed(self, entry: Entry) -> None:
        node = entry.node or ""
        self._outcomes.loaded(entry)
        self._settle(entry)
        self._registry.tell(node, entry.model, LOADED)
        if not entry.has_ended:
            self._be_ready(entry, node)

    def _fail(self, entry: Entry, words: str) -> None:
        self._outcomes.failed(entry, words)
        self._settle(entry, failed=True)
        if not entry.has_ended:
            self._end(entry, Event.FAULT)

    def _be_impossible(self, entry: Entry, words: str) -> None:
        """End a load that its node will never do: its waiters decide again without that node."""
        self._outcomes.impossible(entry, words)
        self._settle(entry, failed=True)
        if not entry.has_ended:
            self._end(entry, Event.FAULT)

    async def _do_watch(self, entry: Entry, begun: Wait) -> None:
        """Until routing has something other than this wait to say."""
        entry.happens(Event.STARTED)
        if not begun.is_for_us:
            entry.happens(Event.PLACED)
        while True:
            snapshot, ledger = self._registry.snapshot, self._registry.ledger
            decision = decide(Query(begun.model), snapshot, ledger, now())
            if isinstance(decision, Serve) and not begun.is_for_us:
                self._be_ready(entry, decision.replica.node)
                return
            if not isinstance(decision, Wait) or decision.reason != begun.reason:
                self._end(entry, Event.FAULT)
                return
            await self._registry.wait_changed()

    # Ends.

    def _be_ready(self, entry: Entry, node: str) -> None:
        """Each wait becomes a claim, before anything else can happen."""
        entry.node = node
        entry.happens(Event.LOADED)
        self._drop(entry)
        self._turns.begin(node, entry.model, entry.line)

    def _end(self, entry: Entry, event: Event, refusal: Refusal | None = None) -> None:
        """Refuse those who wait, or have them decide again."""
        entry.refusal = refusal
        entry.happens(event)
        self._drop(entry)
        if refusal is not None:
            entry.line.refuse(refusal)
        else:
            entry.line.dissolve()

    def _drop(self, entry: Entry) -> None:
        if self._entries.get(entry.model) is entry:
            del self._entries[entry.model]

    # Deadlines.

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            moment = now()
            for entry in self.entries():
                self._look_at(entry, moment)
            self._turns.look(moment, self._timeout)

    def _look_at(self, entry: Entry, moment: float) -> None:
        node = self._registry.snapshot.nodes.get(entry.node or "")
        if entry.state in _AT_IT:
            if node is not None and entry.notes(node.models.get(entry.model)):
                self._outcomes.moved(entry, node.name)
            if entry.is_ours:
                self._judge(entry, node, moment)
        if not entry.has_ended and moment >= entry.deadline:
            self._be_late(entry)

    def _judge(self, entry: Entry, node: Node | None, moment: float) -> None:
        """What its node shows may say more than the answer that is awaited, or never comes."""
        words = loss(entry, node, moment, self._registry.snapshot.policy.stale_after)
        if words is not None:
            self._fail(entry, words)
            entry.stop()
        elif node is not None and _is_loaded(node, entry.model):
            self._succeed(entry)
            entry.stop()

    def _be_late(self, entry: Entry) -> None:
        """A time-out is no failure: the load is the node's, and goes on."""
        model, node = entry.model, entry.node
        if entry.state is State.MAKING_ROOM:
            self._end(entry, Event.LATE, no_room_in_time(model, self._timeout))
            entry.stop()
            return
        if not entry.is_ours:
            refusal = (
                recovering(model, node) if self._recovers(model) else still_loading(model, node)
            )
            self._end(entry, Event.LATE, refusal)
            entry.stop()
            return
        self._outcomes.late(entry, self._timeout)
        self._end(entry, Event.LATE, still_loading(model, node))

    def _recovers(self, model: str) -> bool:
        decision = decide(Query(model), self._registry.snapshot, self._registry.ledger, now())
        return isinstance(decision, Wait) and decision.reason == "recovering"

    def _lines(self) -> list[tuple[str, Line]]:
        entries = [(entry.model, entry.line) for entry in self._entries.values()]
        return entries + self._turns.lines()


def _is_loaded(node: Node, model: str) -> bool:
    info = node.models.get(model)
    return info is not None and info.status == LOADED
