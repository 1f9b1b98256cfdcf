"""The simulated fleet keeps to its own rules: else what it says of policies is worth nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bench import fleet_sim
from bench.sim.gateway import Gateway
from bench.sim.policies import Basic, Ours, Policy, RoundRobin, policies
from bench.sim.scenarios import HOME, LAB, SCENARIOS, THRASH
from bench.sim.tally import Tally, compare
from bench.sim.things import Scenario
from bench.sim.traffic import talks

# More models than fit, two of them over both devices, and enough traffic that they are in each
# other's way all the time.
CROWDED = replace(THRASH, name="crowded", every=12.0)
MINUTES = 8.0
NAMES = [policy.name for policy in policies(1)]


def played(scenario: Scenario, policy: Policy, seed: int = 1) -> Gateway:
    gateway = Gateway(scenario, policy, seed)
    gateway.run(MINUTES)
    gateway.settle()
    return gateway


def named(name: str) -> Policy:
    return next(policy for policy in policies(1) if policy.name == name)


def test_a_seed_gives_the_same_figures_however_strings_are_hashed() -> None:
    line = ["-m", "bench", "fleet", "--minutes", "4", "--seeds", "1", "--scenario", "thrash"]
    printed = [
        subprocess.run(
            [sys.executable, *line],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert "cortexd" in printed[0]
    assert printed[0] == printed[1]


def test_another_seed_gives_another_trace() -> None:
    assert talks(HOME, 1, 10) == talks(HOME, 1, 10)
    assert talks(HOME, 1, 10) != talks(HOME, 2, 10)


def test_every_policy_is_asked_the_same() -> None:
    tallies = compare(CROWDED, range(1, 2), MINUTES)
    assert [tally.policy for tally in tallies] == NAMES
    steps = sum(len(talk.steps) for talk in talks(CROWDED, 1, MINUTES))
    assert {tally.asked for tally in tallies} == {steps}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", [CROWDED, LAB], ids=lambda scenario: str(scenario.name))
def test_every_request_ends_once_and_nothing_is_left_behind(scenario: Scenario, name: str) -> None:
    # That nothing ends twice and no memory is taken that is not there is checked on the way.
    gateway = played(scenario, named(name))
    assert gateway.open == 0
    outcomes = {turn.outcome for turn in gateway.turns}
    assert outcomes <= {"answered", "refused", "cut"}
    ledger = gateway.picture.ledger
    assert not ledger.in_flight
    assert not ledger.promises
    assert not ledger.loading
    assert not ledger.gates
    assert not gateway.loads.entries
    for machine in gateway.machines.values():
        held = sum(engine.sort.vram for engine in machine.engines.values())
        assert sum(machine.free) + held + machine.host.desktop == pytest.approx(
            sum(machine.host.devices)
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("scenario", [CROWDED, HOME], ids=lambda scenario: str(scenario.name))
def test_ours_runs_out_of_no_memory_and_evicts_nothing_that_works(
    scenario: Scenario, seed: int
) -> None:
    tally = Tally.of(played(scenario, Ours(), seed), "ours")
    assert tally.evicted > 0  # it had to
    assert tally.out_of_memory == 0
    assert tally.killed == 0
    assert tally.cut == 0


def test_a_policy_that_knows_nothing_of_memory_runs_out_of_it_and_evicts_what_works() -> None:
    tally = Tally.of(played(CROWDED, Basic()), "basic")
    assert tally.out_of_memory > 0
    assert tally.killed > 0
    assert tally.cut > 0


def test_follow_up_turns_find_their_conversation_again_more_often_with_affinity() -> None:
    ours, turns = (Tally.of(played(LAB, policy), "") for policy in (Ours(), RoundRobin()))
    assert ours.cached / ours.prompt > turns.cached / turns.prompt


def test_a_request_that_failed_counts_as_one_that_never_came() -> None:
    tally = Tally.of(played(CROWDED, Basic()), "basic")
    assert len(tally.waits) == tally.asked
    assert tally.row()[3] == "failed"


def test_the_table_names_every_policy_in_every_scenario(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fleet_sim.run(argparse.Namespace(seed=1, seeds=1, minutes=1.0, scenario=""))
    printed = capsys.readouterr().out
    assert all(f"\n{scenario.name}: " in printed for scenario in SCENARIOS)
    assert all(printed.count(f"\n{name} ") == len(SCENARIOS) for name in NAMES)
