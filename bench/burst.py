"""`burst`: new connections beside busy ones, and how long each waits for its first answer."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench import report
from bench.processes import Companion, Processes
from bench.pumping import add_common, start_subjects, whole
from bench.subjects import start_upstream

LEAD = 0.3  # seconds for which the busy connections are busy before a burst
LIMIT = 60.0  # seconds for a burst to be answered
TARGETS = {"cortexd": "p99 ≤ 500"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_common(parser)
    parser.add_argument("--busy", type=int, default=100, help="connections (default: 100)")
    parser.add_argument(
        "--each", type=int, default=60, help="requests on each busy one (default: 60)"
    )
    parser.add_argument("--new", type=int, default=200, help="connections at once (default: 200)")


def run(args: argparse.Namespace) -> None:
    """Measure the time from connecting to the first byte of an answer, beside busy connections."""
    report.heading(
        f"burst: {args.new} connections opened at once beside {args.busy} that ask back to back, "
        f"from connect to the first byte of the first answer ({args.rounds} rounds)"
    )
    quiet: dict[str, list[float]] = {}
    beside: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder,
        Processes(apart=args.apart) as processes,
    ):
        [upstream] = start_upstream(processes)
        busy, fresh = Companion(processes, "bench.load"), Companion(processes, "bench.load")
        subjects = start_subjects(processes, upstream, Path(folder), args)
        for _ in range(args.rounds):
            for subject in subjects:
                burst = {"do": "burst", "port": subject.port, "connections": args.new}
                burst |= {"limit": LIMIT, "exact": subject.exact}
                tally = fresh.ask(burst)
                whole(tally, subject)
                quiet.setdefault(subject.name, []).extend(tally["first_bytes"])
                busy.ask({"do": "open", "port": subject.port, "connections": args.busy})
                each = max(1, args.each // subject.slow)
                busy.tell({"do": "ask", "each": each, "limit": 120, "exact": subject.exact})
                time.sleep(LEAD)
                tally = fresh.ask(burst)
                if busy.has_answered(0):
                    print(f"{subject.name} was not busy to the end of a burst; raise --each")
                whole(tally, subject)
                whole(busy.hear(), subject)
                busy.ask({"do": "close"})
                beside.setdefault(subject.name, []).extend(tally["first_bytes"])
    report.table(
        ("subject", "alone: p50", "p99", "beside: p50", "p99 (ms)", "target"),
        [
            (name, *_percentiles(quiet[name]), *_percentiles(times), TARGETS.get(name, ""))
            for name, times in beside.items()
        ],
    )


def _percentiles(seconds: list[float]) -> tuple[str, str]:
    shares = (report.percentile(seconds, share) * 1000 for share in (0.5, 0.99))
    middle, slowest = (f"{value:.0f}" for value in shares)
    return middle, slowest
