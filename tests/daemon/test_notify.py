from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from cortexd.daemon import notify
from tests.waiting import until


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@{tmp_path}/notify" if abstract else f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.send("READY=1")
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("name", [None, "", "relative", "/nowhere/at/all", "@nobody-is-here"])
def test_without_a_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    if name is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert notify.send("READY=1") is None


def test_a_manager_that_does_not_read_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        for _ in range(2000):
            notify.send("STATUS=" + "x" * 1000)
        manager.settimeout(5)
        assert manager.recv(2000).startswith(b"STATUS=")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_petted_twice_as_often_as_it_asks_for(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert notify.watchdog_interval(environ) == seconds


async def test_a_status_is_told_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    looks = iter(["one", "one", "two\nREADY=1", *["three"] * 1000])
    monkeypatch.setattr(notify, "send", said.append)
    monkeypatch.setattr(notify, "PAUSE", 0.0)
    reporter = notify.Reporter(lambda: next(looks))
    reporter.start()
    await until(lambda: "STATUS=three" in said)
    await reporter.close()
    assert said == ["STATUS=one", "STATUS=two READY=1", "STATUS=three"]


async def test_the_watchdog_is_petted_from_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notify, "send", said.append)
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    reporter = notify.Reporter(lambda: "")
    reporter.start()
    await until(lambda: said.count("WATCHDOG=1") > 3)
    await reporter.close()


def test_a_reload_carries_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notify, "send", said.append)
    before = time.monotonic_ns() // 1000
    notify.reloading()
    first, second = said[0].splitlines()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
