"""`chunks` and `requests`: CPU time per unit of work, as ratios to nginx in the same round."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report
from bench.processes import Companion, Processes, cpu_seconds
from bench.subjects import Subject, start_all, start_upstream

FLOOR = "nginx"


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that compares."""
    parser.add_argument("--rounds", type=int, default=5, help="over all subjects (default: 5)")
    parser.add_argument("--peers", type=Path, metavar="VENV", help="where the peers are installed")
    parser.add_argument("--policy", help="of the Rust routers (default: their own)")
    parser.add_argument(
        "--apart", action="store_true", help="each subject on a core of its own: less noise"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="measure these subjects only"
    )
    parser.add_argument(
        "--earlier", type=Path, metavar="DIR", help="another checkout of cortexd to compare with"
    )


def start_subjects(
    processes: Processes, upstream: int, place: Path, args: argparse.Namespace
) -> list[Subject]:
    """The subjects that the common options ask for."""
    return list(
        start_all(
            processes,
            upstream,
            place,
            venv=args.peers,
            policy=args.policy,
            only=args.only,
            earlier=args.earlier,
        )
    )


def add_chunks(parser: argparse.ArgumentParser) -> None:
    """The options of `chunks`."""
    add_common(parser)
    parser.add_argument("--streams", type=int, default=100, help="at once (default: 100)")
    parser.add_argument("--chunks", type=int, default=100, help="of a stream (default: 100)")
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two (0.02)")
    parser.add_argument("--each", type=int, default=2, help="streams in a row (default: 2)")


def add_requests(parser: argparse.ArgumentParser) -> None:
    """The options of `requests`."""
    add_common(parser)
    parser.add_argument("--connections", type=int, default=32, help="at once (default: 32)")
    parser.add_argument("--each", type=int, default=200, help="requests on each (default: 200)")


def chunks(args: argparse.Namespace) -> None:
    """CPU time per streamed chunk."""
    report.heading(
        f"chunks: CPU per streamed chunk ({args.streams} streams at once, {args.chunks} chunks of "
        f"190 bytes each, one per {args.pace * 1000:g} ms; {args.rounds} rounds)"
    )
    limit = 30 + 3 * args.each * args.chunks * args.pace

    def window(load: Companion, subject: Subject, *, warming: bool) -> int:
        each: int = 1 if warming else args.each
        tally = load.ask(
            {"do": "ask", "each": each, "events": args.chunks, "exact": subject.exact}
            | {"limit": limit}
        )
        whole(tally, subject)
        units: int = args.streams * each * args.chunks
        return units

    options = ("--events", args.chunks, "--pace", args.pace)
    targets = {"cortexd": "≤ 1.6 × nginx, below the Rust routers"}
    _compare(args, "chunk", options, args.streams, window, targets)


def requests(args: argparse.Namespace) -> None:
    """CPU time per request that is not streamed."""
    report.heading(
        f"requests: CPU per plain request ({args.connections} connections, {args.each} requests "
        f"each, back to back, answers of 600 bytes; {args.rounds} rounds)"
    )

    def window(load: Companion, subject: Subject, *, warming: bool) -> int:
        each = max(1, args.each // subject.slow // (4 if warming else 1))
        tally = load.ask({"do": "ask", "each": each, "limit": 120, "exact": subject.exact})
        whole(tally, subject)
        units: int = args.connections * each
        return units

    targets = {"cortexd": "≤ 6 × nginx, below sglang-router and smg"}
    _compare(args, "request", (), args.connections, window, targets)


def whole(tally: dict[str, Any], subject: Subject) -> None:
    """A figure from answers that are not whole would be a lie. Ends the program."""
    if tally["wrong"]:
        reasons = "\n  ".join(tally["reasons"])
        raise SystemExit(f"{subject.name}: {tally['wrong']} answers are not whole:\n  {reasons}")


def _compare(
    args: argparse.Namespace,
    unit: str,
    options: tuple[object, ...],
    connections: int,
    window: Callable[..., int],
    targets: dict[str, str],
) -> None:
    """Alternate over the subjects, and print the table.

    window(load, subject, warming=…) runs one batch and returns how many units it was.
    """
    costs: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder,
        Processes(apart=args.apart) as processes,
    ):
        [upstream] = start_upstream(processes, *options)
        load = Companion(processes, "bench.load")
        subjects = start_subjects(processes, upstream, Path(folder), args)
        for _ in range(args.rounds):
            for subject in subjects:
                load.ask({"do": "open", "port": subject.port, "connections": connections})
                window(load, subject, warming=True)
                before = cpu_seconds(subject.pid)
                units = window(load, subject, warming=False)
                spent = cpu_seconds(subject.pid) - before
                load.ask({"do": "close"})
                costs.setdefault(subject.name, []).append(spent / units * 1e6)
    report.table(
        ("subject", f"µs per {unit} (range)", "÷ nginx (range)", "target"),
        [
            (name, report.spread(values), _ratios(values, costs.get(FLOOR)), targets.get(name, ""))
            for name, values in costs.items()
        ],
    )


def _ratios(values: list[float], floor: list[float] | None) -> str:
    if floor is None:
        return "–"
    return report.spread([value / low for value, low in zip(values, floor, strict=True)], 2)
