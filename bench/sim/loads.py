"""Loads under way and the room that is made for them: what `cortexd.control` does, in virtual time.

Decides nothing itself but in what order the effects of a decision come about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from bench.sim.picture import Key, Picture
from bench.sim.policies import Policy
from bench.sim.things import Turn
from cortexd.fleet import memory
from cortexd.fleet.placement import Placement
from cortexd.fleet.promises import begun, freed, given_back, under_way
from cortexd.fleet.residents import residents
from cortexd.fleet.snapshot import Failure, Promise
from cortexd.wire.neuron import LOADED, LOADING

FIRST_BACKOFF = 15.0  # seconds, doubled by every further failure
LONGEST_BACKOFF = 300.0
KEEPING = 2.0  # seconds between two looks whether copies are missing
RELIEFS = 8  # times that a simple policy makes more room for one load; ours: once


class Entry:
    """A load, from the decision to its end, and who waits for it.

    leaving: unloads under way for it; since when, once they are over, their memory is awaited.
    gated: the busy replica that gets no new requests for its sake, and since when.
    insists: it has waited for long enough for those at work, and is the first one to have done so.
    avoid: nodes where it is no use. is_asked: whether requests want it.
    """

    def __init__(self, model: str, placed: Placement, now: float) -> None:
        self.model = model
        self.placed = placed
        self.began = now
        self.insists = False
        self.avoid: tuple[str, ...] = ()
        self.is_asked = True
        self.is_loading = False
        self.has_ended = False
        self.waiters: list[Turn] = []
        self.leaving: dict[Key, float | None] = {}
        self.gated: Key | None = None
        self.gated_at = 0.0
        self.reliefs = 0

    @property
    def key(self) -> Key:
        """Where it goes."""
        return (self.placed.node, self.model)


class Loads:
    """All loads under way, at most one for each model.

    route: what a waiter goes on with when its load has ended, and where it ended well.
    """

    def __init__(self, picture: Picture, policy: Policy, route: Callable[[Turn], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self.done = 0
        self._picture = picture
        self._policy = policy
        self._route = route
        self._clock = picture.clock

    def begin(self, model: str, placed: Placement, turn: Turn) -> None:
        """A load that is not under way yet, for a request."""
        entry = Entry(model, placed, self._clock.now)
        entry.waiters.append(turn)
        self._begin(entry, placed)

    def look(self) -> None:
        """Something has changed: who makes room may go on."""
        for entry in list(self.entries.values()):
            self._advance(entry)

    def keep(self) -> None:
        """Bring back copies that the catalogue wants kept, where there is room."""
        picture, now = self._picture, self._clock.now
        for model, profile in picture.snapshot.catalogue.profiles.items():
            there = picture.snapshot.replicas.get(model, ())
            avoid = tuple(each.node for each in there if each.status in (LOADED, LOADING))
            if len(avoid) >= profile.copies or model in self.entries:
                continue
            placed = self._policy.place(model, picture, now, avoid, unasked=True)
            if isinstance(placed, Placement) and not (placed.victims or placed.blockers):
                entry = Entry(model, placed, now)
                entry.avoid, entry.is_asked = avoid, False
                self._begin(entry, placed)

    # Making room.

    def _begin(self, entry: Entry, placed: Placement) -> None:
        self.entries[entry.model] = entry
        self._stand(entry, placed)
        self._go_to(entry, placed)

    def _advance(self, entry: Entry) -> None:
        """Place it anew with every change, until nothing is in the way."""
        picture, now = self._picture, self._clock.now
        for key, since in list(entry.leaving.items()):
            if since is not None and picture.polled[key[0]] >= since:
                self._let_go(entry, key)
        if entry.is_loading or entry.leaving or entry.has_ended:
            return
        if entry.gated is not None and not self._is_gate_over(entry, entry.gated):
            return
        picture.ledger.promises.pop(entry.key, None)
        placed = self._policy.place(
            entry.model, picture, now, entry.avoid, unasked=not entry.is_asked
        )
        if not isinstance(placed, Placement):
            self._end(entry)
            return
        entry.insists = bool(placed.blockers) and self._may_insist(entry, placed.node)
        self._stand(entry, placed)
        self._go_to(entry, placed)

    def _go_to(self, entry: Entry, placed: Placement) -> None:
        if placed.blockers:
            if entry.insists:
                self._gate_one(entry, placed.blockers)
        elif placed.victims:
            self._evict(entry, placed.victims)
        else:
            self._load(entry)

    def _stand(self, entry: Entry, placed: Placement) -> None:
        """It is to go there. Nobody else may count on the memory, unless it is held by work: were
        that promised to all who wait for it, each would wait for the others' promises for ever."""
        entry.placed = placed
        self._picture.ledger.loading[entry.model] = placed.node
        if entry.insists or not placed.blockers:
            self._picture.ledger.promises[entry.key] = Promise(placed.needs)

    def _may_insist(self, entry: Entry, node: str) -> bool:
        """One at a time on a node, or large models would wait for ever: small ones come between."""
        patience = self._picture.snapshot.policy.patience
        if not self._policy.is_patient or self._clock.now < entry.began + patience:
            return False
        return not any(
            other.insists and other is not entry and other.placed.node == node
            for other in self.entries.values()
        )

    def _gate_one(self, entry: Entry, blockers: tuple[str, ...]) -> None:
        picture, now = self._picture, self._clock.now
        node = picture.snapshot.nodes[entry.placed.node]
        # One that only stays because it has just come goes by itself when its time is over.
        at_work = [
            (one.node, one.model)
            for one in residents(node, picture.snapshot, picture.ledger, now)
            if one.model in blockers and one.kept is None
        ]
        if at_work and not picture.is_gated(at_work[0]):
            entry.gated, entry.gated_at = at_work[0], now
            picture.gate(at_work[0])

    def _is_gate_over(self, entry: Entry, key: Key) -> bool:
        """Whether to place anew: the gated one is idle and goes, or did not become so in time."""
        if self._picture.is_idle(key):
            entry.gated = None
            self._unload(entry, key)
            return False
        if self._clock.now < entry.gated_at + self._picture.snapshot.policy.gate_timeout:
            return False
        entry.gated, entry.began = None, self._clock.now
        self._picture.open(key)
        return True

    def _evict(self, entry: Entry, victims: Iterable[str]) -> None:
        keys = [(entry.placed.node, model) for model in victims]
        keys = [key for key in keys if not self._picture.is_gated(key)]
        for key in keys:
            self._picture.gate(key)
            self._unload(entry, key)
        if not keys and not self._policy.is_patient:
            self._load(entry)

    def _unload(self, entry: Entry, key: Key) -> None:
        """Of a replica behind a gate."""
        picture, is_patient = self._picture, self._policy.is_patient
        promises, seen_by = picture.ledger.promises, under_way(picture.ledger.promises, key[0])
        held = picture.held(key)
        entry.leaving[key] = None

        def is_over(gone: bool) -> None:
            picture.nudge(key[0])
            if gone:
                promises.update(freed(promises, key, held, seen_by))
            if gone and is_patient:
                # It stays in the picture until its memory is free there: who looks for room
                # meanwhile would find neither.
                entry.leaving[key] = self._clock.now
                return
            if gone:
                picture.forget(*key)
            self._let_go(entry, key)
            if not entry.leaving and not is_patient:
                self._load(entry)

        picture.machines[key[0]].unload(key[1], not self._policy.kills, is_over)

    def _let_go(self, entry: Entry, key: Key) -> None:
        self._picture.open(key)
        del entry.leaving[key]

    # Loading.

    def _load(self, entry: Entry) -> None:
        picture, placed = self._picture, entry.placed
        entry.is_loading = True
        began = self._clock.now
        node = picture.snapshot.nodes[placed.node]
        ledger = picture.ledger
        free = memory.before(node, picture.snapshot, ledger, besides=entry.model)
        ledger.promises.update(begun(ledger.promises, entry.key, placed.needs, free))

        def is_over(words: str | None) -> None:
            if words is not None:
                ledger.promises.update(given_back(ledger.promises, entry.key))
            ended = msgspec.structs.replace(ledger.promises[entry.key], ended=self._clock.now)
            ledger.promises[entry.key] = ended
            picture.nudge(placed.node)
            if words is None:
                picture.ledger.load_seconds[entry.key] = self._clock.now - began
                self._succeed(entry)
            else:
                self._fail(entry, words)

        picture.machines[placed.node].load(placed.spec, is_over)

    def _succeed(self, entry: Entry) -> None:
        self.done += 1
        self._picture.ledger.failures.pop(entry.key, None)
        self._picture.tell(*entry.key, LOADED)
        self._end(entry)

    def _fail(self, entry: Entry, words: str) -> None:
        picture = self._picture
        picture.forget(*entry.key)
        entry.is_loading = False
        most = (1 if self._policy.is_patient else RELIEFS) if entry.is_asked else 0
        if entry.reliefs < most and (
            victims := self._policy.relief(entry.model, entry.placed, picture)
        ):
            entry.reliefs += 1
            self._evict(entry, victims)
            return
        failures = picture.ledger.failures
        before = failures.get(entry.key)
        count = before.count + 1 if before else 1
        pause = min(FIRST_BACKOFF * 2 ** (count - 1), LONGEST_BACKOFF)
        failures[entry.key] = Failure(words, self._clock.now + pause, count)
        self._end(entry)

    def _end(self, entry: Entry) -> None:
        """Everybody decides again, at this very moment: nobody comes between."""
        ledger = self._picture.ledger
        entry.has_ended = True
        del self.entries[entry.model]
        del ledger.loading[entry.model]
        promise = ledger.promises.get(entry.key)
        if promise is not None and promise.before is None:
            del ledger.promises[entry.key]
        for turn in entry.waiters:
            self._route(turn)
