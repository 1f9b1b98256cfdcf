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
PACE = 0.001  # seconds, at most, until the end of the stream
SILENCE = 0.03  # seconds before a request, in which caches cool down and cores fall asleep
TARGETS = {"cortexd": "p50 ≤ 0.35, p99 ≤ 1.5"}

Times = dict[str, tuple[list[float], list[float]]]  # direct and through, by subject


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
        f"({args.rounds} rounds of {args.requests}, one right after the other; the same after "
        f"{SILENCE * 1000:g} ms of silence)"
    )
    at_once: Times = {}
    after_silence: Times = {}
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
                command |= {"times": args.requests}
                for times, pause in ((at_once, 0.0), (after_silence, SILENCE)):
                    tallies = load.ask(command | {"pause": pause})
                    for tally, into in zip(
                        tallies, times.setdefault(subject.name, ([], [])), strict=True
                    ):
                        whole(tally, subject)
                        into.extend(tally["first_bytes"])
    report.table(
        (
            "subject",
            *("direct p50", "p99", "through p50", "p99", "added p50", "p99 (ms)", "target"),
            *("after silence: direct p50", "added p50", "p99"),
        ),
        [
            (name, *_row(*times), TARGETS.get(name, ""), *_added(*after_silence[name]))
            for name, times in at_once.items()
        ],
    )


def _row(direct: list[float], through: list[float]) -> tuple[str, ...]:
    (low, high), (slow, slowest) = _percentiles(direct), _percentiles(through)
    return _shown(low, high, slow, slowest, slow - low, slowest - high)


def _added(direct: list[float], through: list[float]) -> tuple[str, ...]:
    (low, high), (slow, slowest) = _percentiles(direct), _percentiles(through)
    return _shown(low, slow - low, slowest - high)


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99, in ms."""
    return report.percentile(seconds, 0.5) * 1000, report.percentile(seconds, 0.99) * 1000


def _shown(*milliseconds: float) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in milliseconds)
