"""`fleet`: how well the fleet is used, in a simulation that drives the gateway's own decisions."""

from __future__ import annotations

import argparse
import sys
import time

from bench import report
from bench.sim.scenarios import SCENARIOS
from bench.sim.tally import COLUMNS, compare


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--seed", type=int, default=1, help="of the first trace (default: 1)")
    parser.add_argument("--seeds", type=int, default=3, help="traces, summed up (default: 3)")
    parser.add_argument("--minutes", type=float, default=60.0, help="of traffic (default: 60)")
    parser.add_argument("--scenario", default="", help="only those with this in their names")


def run(args: argparse.Namespace) -> None:
    """How well models and requests are placed: a simulated fleet, several policies."""
    seeds = range(args.seed, args.seed + args.seeds)
    print(f"fleet: {args.minutes:g} min of traffic, seeds {seeds[0]} to {seeds[-1]}")
    for scenario in SCENARIOS:
        if args.scenario not in scenario.name:
            continue
        began = time.monotonic()
        tallies = compare(scenario, seeds, args.minutes)
        print(f"\n{scenario.name}: {tallies[0].asked} requests\n")
        report.table(COLUMNS, [tally.row() for tally in tallies])
        # Not with the results, which are the same every time.
        print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr)
