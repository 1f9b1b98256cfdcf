"""Who asks for what: conversations with models of unequal popularity.

A trace depends on the scenario and the seed alone; a policy can't change what is asked, only (as
people wait for an answer before they go on) how soon the next turn comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bench.sim.clock import Clock
from bench.sim.things import Scenario, Turn

MOST_TURNS = 20
LONGEST_PROMPT = 24_000  # tokens; then the person begins anew
LONGEST_ANSWER = 2000


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation. begins: seconds from the start. steps: of each turn the tokens that the
    person adds, those of the answer, and the seconds of thought before it."""

    name: str
    model: str
    system: str
    system_tokens: int
    begins: float
    steps: tuple[tuple[int, int, float], ...]


def talks(scenario: Scenario, seed: int, minutes: float) -> list[Talk]:
    """All conversations that begin within `minutes`: a Poisson process."""
    draw = random.Random(f"{scenario.name}/{seed}")
    names = [sort.name for sort in scenario.sorts]
    popularity = [1 / (rank + 1) ** scenario.skew for rank in range(len(names))]
    found: list[Talk] = []
    moment = draw.expovariate(1 / scenario.every)
    while moment < minutes * 60:
        [model] = draw.choices(names, popularity)
        system = draw.randrange(len(scenario.systems))
        found.append(
            Talk(
                f"talk-{len(found)}",
                model,
                f"system-{system}",
                scenario.systems[system],
                moment,
                _steps(scenario, draw, scenario.systems[system]),
            )
        )
        moment += draw.expovariate(1 / scenario.every)
    return found


def _steps(
    scenario: Scenario, draw: random.Random, prompt: int
) -> tuple[tuple[int, int, float], ...]:
    steps: list[tuple[int, int, float]] = []
    while True:
        asked = 8 + int(draw.lognormvariate(5.0, 1.2))  # tokens: mostly a question, at times a file
        answer = min(LONGEST_ANSWER, 4 + int(draw.lognormvariate(5.3, 0.9)))
        prompt += asked + answer
        if steps and prompt > LONGEST_PROMPT:
            break
        think = scenario.think * draw.lognormvariate(0, 0.7) if steps else 0.0
        steps.append((min(asked, LONGEST_PROMPT), answer, think))
        if len(steps) == MOST_TURNS or draw.random() < 1 / scenario.turns:
            break
    return tuple(steps)


class Person:
    """Carries on one conversation: asks, waits for the answer, thinks, asks again. After a turn
    that failed as well: everybody asks all of what they have to ask."""

    def __init__(self, clock: Clock, talk: Talk, ask: Callable[[Turn], None]) -> None:
        self._clock = clock
        self._talk = talk
        self._ask = ask
        self._said = talk.system_tokens
        self._turn = 0
        clock.after(talk.begins, self._go_on)

    def hear(self, turn: Turn) -> None:
        """The turn has ended, one way or the other."""
        if turn.outcome == "answered":
            self._said += turn.answer
        if self._turn < len(self._talk.steps):
            self._clock.after(self._talk.steps[self._turn][2], self._go_on)

    def _go_on(self) -> None:
        talk = self._talk
        asked, answer, _ = talk.steps[self._turn]
        self._turn += 1
        self._said += asked
        turn = Turn(talk.model, talk.name, talk.system, talk.system_tokens, self._said, answer)
        turn.arrived = self._clock.now
        self._ask(turn)
