"""`poll`: what it costs to keep a picture of a large fleet."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench import report
from bench.processes import Processes, cpu_seconds, get_json, resident_kib
from bench.subjects import start_cortexd, start_upstream

INTERVAL = 2.0  # seconds between two polls of a node: the gateway's default
SETTLE = 2 * INTERVAL  # the first round is not like the others: it asks for the hardware too


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--nodes", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured (default: 20)")


def run(args: argparse.Namespace) -> None:
    """CPU time of polling many nodes."""
    report.heading(f"poll: {args.nodes} nodes, each polled every {INTERVAL:g} s")
    with tempfile.TemporaryDirectory(prefix="cortexd-bench-") as folder, Processes() as processes:
        ports = start_upstream(processes, "--ports", args.nodes)
        gateway = start_cortexd(processes, ports, Path(folder))
        time.sleep(SETTLE)
        polls, before = get_json(ports[0], "/bench")["polls"], cpu_seconds(gateway.pid)
        began = time.monotonic()
        time.sleep(args.seconds)
        spent = cpu_seconds(gateway.pid) - before
        took = time.monotonic() - began
        polls = get_json(ports[0], "/bench")["polls"] - polls
        health, memory = get_json(gateway.port, "/health"), resident_kib(gateway.pid)
    expected = args.nodes * took / INTERVAL
    if health["status"] != "ok" or not 0.8 < polls / expected < 1.2:
        raise SystemExit(f"{polls} polls instead of {expected:.0f}; the gateway says {health}")
    report.table(
        ("what", "result", "target"),
        [
            ("polls per second", f"{polls / took:.0f}", f"{args.nodes / INTERVAL:.0f}"),
            ("share of a core", f"{spent / took:.1%}", "≤ 10 %"),
            ("µs per poll (/models and /health)", f"{spent / polls * 1e6:.0f}", ""),
            ("memory, MiB", f"{memory / 1024:.1f}", ""),
        ],
    )
