"""What is measured about a process is that process, its children included, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from bench.processes import Processes, cpu_seconds, socket_count, tree
from tests.functional.processes import is_alive

BURN = "import time\nwhile time.process_time() < 0.2: pass\nprint('burnt', flush=True)\ninput()"


def test_cpu_time_is_the_process_clock_of_the_process() -> None:
    before = time.process_time()
    seen = cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()


def test_children_are_counted_and_the_end_leaves_none() -> None:
    with Processes() as processes:
        nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
        parent = processes.start([sys.executable, "-c", nested], pipes=True)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"burnt\n"
        family = tree(parent.pid)
        assert len(family) == 2
        assert cpu_seconds(parent.pid) >= 0.2
    assert parent.returncode is not None
    while any(is_alive(member) for member in family):  # killed, and about to be gone
        time.sleep(0.01)


def test_sockets_are_counted() -> None:
    before = socket_count(os.getpid())
    with socket.socket(), socket.socket():
        assert socket_count(os.getpid()) == before + 2


def test_apart_who_is_measured_shares_no_core_with_who_measures(tmp_path: Path) -> None:
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with Processes(apart=True) as processes:
        ours = processes.start(ask, pipes=True)
        assert ours.stdout is not None
        measures = json.loads(ours.stdout.read())
        log = tmp_path / "log"
        processes.start(ask, log=log).wait()
        measured = json.loads(log.read_text())
    assert sorted({*measures, *measured}) == sorted(os.sched_getaffinity(0))
    assert len(measured) == 1
    assert measures != measured or len(measures) == os.cpu_count() == 1
