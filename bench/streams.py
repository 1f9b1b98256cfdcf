"""`streams`: thousands of streams in one gateway process, and clients that stop reading theirs."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench import report
from bench.processes import (
    Companion,
    Processes,
    cpu_seconds,
    get_json,
    resident_kib,
    socket_count,
)
from bench.subjects import Subject, start_cortexd, start_upstream

SAMPLE = 0.2  # seconds between two looks at a process
RATE = 1000  # streams that begin in a second
STALLED_SIZE = 200_000  # bytes of a chunk
STALLED_EVENTS = 250  # of a stream that nobody reads: 50 MB, more than sockets absorb
STALL = 5.0  # seconds for the buffers to fill
FREED = 10.0  # seconds to wait, at most, for what a client left behind to be freed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--streams", type=int, default=5000, help="at once (default: 5000)")
    parser.add_argument("--events", type=int, default=20, help="of each (default: 20)")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds between two (default: 1)")
    parser.add_argument("--stalled", type=int, default=20, help="stalled clients (default: 20)")


def run(args: argparse.Namespace) -> None:
    """Memory of many concurrent streams, and of clients that stop reading."""
    report.heading(
        f"streams: {args.streams} concurrent streams of {args.events} chunks through one cortexd "
        f"process, one per {args.pace:g} s; then {args.stalled} clients that read nothing of "
        f"streams of {STALLED_SIZE // 1000} KB chunks"
    )
    rows = [*_many(args), *_stalled(args.stalled)]
    report.table(("what", "result", "target"), rows)


def _many(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder, Processes() as processes:
        [upstream] = start_upstream(processes, "--events", args.events, "--pace", args.pace)
        gateway = start_cortexd(processes, [upstream], Path(folder))
        load = Companion(processes, "bench.load")
        idle = warm(load, gateway)
        load.ask({"do": "open", "port": gateway.port, "connections": args.streams})
        connected = resident_kib(gateway.pid)
        limit = 30 + args.streams / RATE + 3 * args.events * args.pace
        before, began = cpu_seconds(gateway.pid), time.monotonic()
        load.tell({"do": "ask", "each": 1, "events": args.events, "limit": limit, "rate": RATE})
        peak, at_once = 0.0, 0
        while not load.has_answered(SAMPLE):
            peak = max(peak, resident_kib(gateway.pid))
            at_once = max(at_once, get_json(upstream, "/bench")["streams"])
        tally = load.hear()
        share = (cpu_seconds(gateway.pid) - before) / (time.monotonic() - began)
        for reason in tally["reasons"]:
            print(f"lost: {reason}")
        return [
            ("streams at once, at most", str(at_once), str(args.streams)),
            ("answered whole", str(tally["whole"]), str(args.streams)),
            ("lost", str(tally["wrong"]), "0"),
            ("memory when idle, MiB", f"{idle / 1024:.1f}", ""),
            ("KiB per idle connection", f"{(connected - idle) / args.streams:.1f}", ""),
            ("KiB per stream over idle", f"{(peak - idle) / args.streams:.1f}", "≤ 40"),
            ("share of a core", f"{share:.0%}", ""),
        ]


def _stalled(clients: int) -> list[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder, Processes() as processes:
        size = ("--events", STALLED_EVENTS, "--size", STALLED_SIZE)
        [upstream] = start_upstream(processes, *size, "--pace", 0.005)
        gateway = start_cortexd(processes, [upstream], Path(folder))
        load = Companion(processes, "bench.load")
        idle = warm(load, gateway)
        sockets = socket_count(gateway.pid)
        load.ask({"do": "open", "port": gateway.port, "connections": clients})
        load.ask({"do": "stall"})
        peak, until = 0.0, time.monotonic() + STALL
        while time.monotonic() < until:
            peak = max(peak, resident_kib(gateway.pid))
            time.sleep(SAMPLE)
        held = get_json(upstream, "/bench")["streams"]
        load.ask({"do": "close"})
        left = time.monotonic()
        freed, closed = None, None
        while time.monotonic() < left + FREED and (freed is None or closed is None):
            now = time.monotonic() - left
            if closed is None and not get_json(upstream, "/bench")["streams"]:
                closed = now
            if freed is None and socket_count(gateway.pid) <= sockets:
                freed = now
            time.sleep(0.01)
        time.sleep(max(0.0, left + 1.0 - time.monotonic()))
        after = resident_kib(gateway.pid)
        return [
            ("stalled streams held", str(held), str(clients)),
            ("KiB per stalled client, at most", f"{(peak - idle) / clients:.0f}", "≤ 384"),
            ("upstream let go after, s", _seconds(closed), "≤ 1"),
            ("all sockets closed after, s", _seconds(freed), "≤ 1"),
            ("KiB per client, 1 s after they left", f"{(after - idle) / clients:.0f}", ""),
        ]


def warm(load: Companion, gateway: Subject) -> float:
    """A few plain requests, and quiet: the memory (KiB) of a gateway that has worked before."""
    load.ask({"do": "open", "port": gateway.port, "connections": 4})
    load.ask({"do": "ask", "each": 25, "limit": 30})
    load.ask({"do": "close"})
    time.sleep(5.0)  # idle upstream connections are kept for 4 s
    return resident_kib(gateway.pid)


def _seconds(value: float | None) -> str:
    return f"> {FREED:g}" if value is None else f"{value:.2f}"
