"""A simulated gateway: it carries out what a policy decides, on simulated hosts."""

from __future__ import annotations

import random

from bench.sim.clock import Clock
from bench.sim.engine import Job
from bench.sim.loads import KEEPING, Loads
from bench.sim.machine import Machine
from bench.sim.picture import Picture
from bench.sim.policies import Policy
from bench.sim.things import Scenario, Turn
from bench.sim.traffic import Person, talks
from cortexd.fleet import snapshot
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.routing import Lazy, Load, Refuse, Serve, Wait

MOST_PASSES = 2  # through the load table, for one request
OVERTIME = 24 * 3600.0  # seconds after which a run that does not come to its end is broken


class Gateway:
    """One scenario under one policy. turns: all requests so far; open: how many have not ended."""

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        seed: int,
        options: snapshot.Policy = snapshot.DEFAULT_POLICY,
    ) -> None:
        self.clock = Clock()
        self.turns: list[Turn] = []
        self.open = 0
        sorts = {sort.name: sort for sort in scenario.sorts}
        self.machines = {host.name: Machine(self.clock, host, sorts) for host in scenario.hosts}
        catalogue = Catalogue.of(tuple(sort.profile() for sort in scenario.sorts), {})
        draw = random.Random(f"polls/{seed}")
        self.picture = Picture(self.clock, self.machines, catalogue, options, draw)
        self.picture.changed = self._look
        self.loads = Loads(self.picture, policy, self._pass_on)
        self._policy = policy
        self._scenario = scenario
        self._seed = seed
        self._people: dict[str, Person] = {}
        self._parked: list[Turn] = []
        self.clock.every(lambda: KEEPING, self.loads.keep)

    def run(self, minutes: float) -> None:
        """Play all conversations of the trace to their ends."""
        for talk in talks(self._scenario, self._seed, minutes):
            self._people[talk.name] = Person(self.clock, talk, self._ask)
        until = self.clock.now + minutes * 60 + OVERTIME
        self.clock.run(until, lambda: self.open > 0 or bool(self.loads.entries))

    def settle(self) -> None:
        """Two more rounds of polls, so that nothing is left to be reported."""
        until = self.clock.now + 5.0
        self.clock.run(until, lambda: True)

    def _ask(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.open += 1
        self._route(turn)

    def _pass_on(self, turn: Turn) -> None:
        """It has waited for a load, which has ended in some way."""
        turn.passes += 1
        self._route(turn)

    def _route(self, turn: Turn) -> None:
        decision = self._policy.decide(turn, self.picture, self.clock.now)
        match decision:
            case Serve(replica) | Lazy(replica):
                self._send(turn, replica.node)
            case Refuse(refusal):
                self._end(turn, "refused", refusal.kind.code)
            case Load() if turn.passes >= MOST_PASSES:
                self._end(turn, "refused", "cold_load_failed")
            case Load(model, placed):
                # First, as a load can come to its end at once.
                entry = self.loads.entries.get(model)
                if entry is None:
                    self.loads.begin(model, placed, turn)
                else:
                    entry.waiters.append(turn)
            case Wait(model):
                if (entry := self.loads.entries.get(model)) is not None:
                    entry.waiters.append(turn)
                else:
                    self._parked.append(turn)

    def _send(self, turn: Turn, node: str) -> None:
        key = (node, turn.model)
        picture = self.picture

        def speak() -> None:
            turn.first = self.clock.now
            picture.ledger.served.setdefault(key, self.clock.now)

        def end(is_cut: bool) -> None:
            picture.release(key)
            self._end(turn, "cut" if is_cut else "answered")
            self._look()

        if self.machines[node].serve(turn.model, Job(turn, speak, end)):
            picture.claim(key)
        else:  # 404: it is not there any more, which the next poll will say, too
            picture.forget(*key)
            self._route(turn)

    def _end(self, turn: Turn, outcome: str, code: str | None = None) -> None:
        if turn.outcome is not None:
            raise AssertionError(f"{turn} ends twice")
        turn.outcome, turn.code = outcome, code
        self.open -= 1
        self._people[turn.talk].hear(turn)

    def _look(self) -> None:
        """Whoever waits for a change decides again."""
        self.loads.look()
        parked, self._parked = self._parked, []
        for turn in parked:
            self._route(turn)
