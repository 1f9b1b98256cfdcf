"""`waiters`: a thousand requests for one model that nobody has loaded yet."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench import answers, report
from bench.processes import Companion, Processes, get_json, resident_kib
from bench.streams import warm
from bench.subjects import start_cortexd, start_upstream

LIMIT = 60.0  # seconds beyond the load itself
PROBE = 0.02  # seconds between two looks at the gateway's /health


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--waiters", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--load-time", type=float, default=3.0, help="seconds (default: 3)")


def run(args: argparse.Namespace) -> None:
    """Simultaneous requests for one cold model: loads, time to answer, memory."""
    report.heading(
        f"waiters: {args.waiters} simultaneous requests for one cold model "
        f"that takes {args.load_time:g} s to load"
    )
    with tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder, Processes() as processes:
        [upstream] = start_upstream(processes, "--load_time", args.load_time)
        gateway = start_cortexd(processes, [upstream], Path(folder))
        load = Companion(processes, "bench.load")
        idle = warm(load, gateway)
        load.ask({"do": "open", "port": gateway.port, "connections": args.waiters})
        limit = args.load_time + LIMIT
        load.tell({"do": "ask", "each": 1, "model": answers.COLD, "limit": limit})
        probes: list[tuple[float, float]] = []  # when, how long
        peak = 0.0
        while not load.has_answered(PROBE):
            began = time.monotonic()
            get_json(gateway.port, "/health")
            probes.append((began, time.monotonic() - began))
            if get_json(upstream, "/bench")["loaded_at"] is None:
                peak = max(peak, resident_kib(gateway.pid))
        tally, facts = load.hear(), get_json(upstream, "/bench")
    for reason in tally["reasons"]:
        print(f"not answered: {reason}")
    loaded_at = facts["loaded_at"] or time.monotonic()
    waiting = [took for began, took in probes if began + took < loaded_at]
    answering = [took for began, took in probes if began + took >= loaded_at]
    report.table(
        ("what", "result", "target"),
        [
            ("loads", facts["loads"], "1"),
            ("answered whole", tally["whole"], str(args.waiters)),
            (
                "all answered after the load's end, ms",
                _ms(tally["last_answer"] - loaded_at),
                "≤ 300",
            ),
            ("KiB per waiter", f"{(peak - idle) / args.waiters:.1f}", ""),
            ("longest /health while they wait, ms", _ms(max(waiting, default=0)), ""),
            ("longest /health while they are answered, ms", _ms(max(answering, default=0)), ""),
        ],
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"
