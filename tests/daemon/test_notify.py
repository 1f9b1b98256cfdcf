from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cortexd.daemon import notify


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
