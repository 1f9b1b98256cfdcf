"""What came of a run, and the same summed up over several seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.report import percentile
from bench.sim.gateway import Gateway
from bench.sim.policies import policies
from bench.sim.things import Scenario

COLUMNS = (
    "policy",
    "TTFT p50",
    "p95",
    "p99",
    "loads",
    "evicted",
    "at work",
    "OOM",
    "cached",
    "refused",
    "cut",
)


@dataclass(slots=True)
class Tally:
    """Counts of runs under one policy. waits: seconds to the first token, of every request; that of
    one that failed never came: a policy must not look quick by what it drops."""

    policy: str
    waits: list[float]
    asked: int = 0
    loads: int = 0
    evicted: int = 0
    killed: int = 0
    out_of_memory: int = 0
    prompt: int = 0
    cached: int = 0
    refused: int = 0
    cut: int = 0

    @classmethod
    def of(cls, gateway: Gateway, policy: str) -> Tally:
        """What one run has led to."""
        tally = cls(policy, [], asked=len(gateway.turns), loads=gateway.loads.done)
        for machine in gateway.machines.values():
            tally.evicted += machine.unloads
            tally.killed += machine.killed
            tally.out_of_memory += machine.out_of_memory
        for turn in gateway.turns:
            wait = math.inf
            if turn.outcome == "answered" and turn.first is not None:
                wait = turn.first - turn.arrived
                tally.prompt += turn.prompt
                tally.cached += turn.cached
            tally.waits.append(wait)
            tally.refused += turn.outcome == "refused"
            tally.cut += turn.outcome == "cut"
        return tally

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.waits += other.waits
        for name in ("asked", "loads", "evicted", "killed", "out_of_memory", "prompt", "cached"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused += other.refused
        self.cut += other.cut

    def row(self) -> tuple[str, ...]:
        """As a line of the table."""
        return (
            self.policy,
            *(_seconds(percentile(self.waits, share)) for share in (0.5, 0.95, 0.99)),
            str(self.loads),
            str(self.evicted),
            str(self.killed),
            str(self.out_of_memory),
            f"{self.cached / max(1, self.prompt):.0%}",
            str(self.refused),
            str(self.cut),
        )


def _seconds(wait: float) -> str:
    return "failed" if math.isinf(wait) else f"{wait:.2f} s" if wait < 100 else f"{wait:.0f} s"


def compare(scenario: Scenario, seeds: range, minutes: float) -> list[Tally]:
    """Every policy on the same traces; ours first."""
    sums: dict[str, Tally] = {}
    for seed in seeds:
        for policy in policies(seed):
            gateway = Gateway(scenario, policy, seed)
            gateway.run(minutes)
            tally = Tally.of(gateway, policy.name)
            if policy.name in sums:
                sums[policy.name].add(tally)
            else:
                sums[policy.name] = tally
    return list(sums.values())
