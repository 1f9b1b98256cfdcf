"""`latency`: what a gateway adds to the time to the first token, one request at a time."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench import report
from bench.processes import Companion, Processes
from bench.pumping import add_common, start_subjects, whole
from bench.subjects import start_upstream

EVENTS = 1  # of a stream; it comes at once, and is what is timed
PACE = 0.04  # seconds, at most, until the end of the stream
TARGETS = {"cortexd": "p50 ≤ 0.35, p99 ≤ 1.5"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_common(parser)
    parser.add_argument(
        "--requests", type=int, default=150, help="of each subject in a round (default: 150)"
    )


def run(args: argparse.Namespace) -> None:
    """Added time to the first byte of a stream, over going to the upstream directly."""
    report.heading(
        "latency: time to the first byte of a stream over 1 connection, direct and through in turn "
        f"({args.rounds} rounds of {args.requests})"
    )
    direct: dict[str, list[float]] = {}
    through: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder,
        Processes(apart=args.apart) as processes,
    ):
        [upstream] = start_upstream(processes, "--events", EVENTS, "--pace", PACE)
        load = Companion(processes, "bench.load")
        subjects = start_subjects(processes, upstream, Path(folder), args)
        for _ in range(args.rounds):
            for subject in subjects:
                command = {"do": "alternate", "ports": [upstream, subject.port], "events": EVENTS}
                command |= {"exact": [True, subject.exact], "limit": 120}
                load.ask(command | {"times": 20})
                tallies = load.ask(command | {"times": args.requests})
                for tally, times in zip(tallies, (direct, through), strict=True):
                    whole(tally, subject)
                    times.setdefault(subject.name, []).extend(tally["first_bytes"])
    report.table(
        ("subject", "direct p50", "p99", "through p50", "p99", "added p50", "p99 (ms)", "target"),
        [_row(name, direct[name], through[name]) for name in through],
    )


def _row(name: str, direct: list[float], through: list[float]) -> tuple[str, ...]:
    times = [
        report.percentile(values, share) * 1000
        for values in (direct, through)
        for share in (0.5, 0.99)
    ]
    times += [times[2] - times[0], times[3] - times[1]]
    return (name, *(f"{value:.2f}" for value in times), TARGETS.get(name, ""))
