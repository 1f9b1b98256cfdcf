from __future__ import annotations

import logging
import os
import pty
import threading

import pytest

from cortexd.daemon import lines as module
from cortexd.daemon.lines import MANY, MOST, Lines
from tests.waiting import GUARD

LINE = "x" * 99 + "\n"


def taken(descriptor: int, size: int) -> bytes:
    """The next `size` bytes, from another thread so that nothing hangs for ever."""
    got = bytearray()

    def read() -> None:
        while len(got) < size and (more := os.read(descriptor, size - len(got))):
            got.extend(more)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(GUARD)
    assert not reader.is_alive()
    return bytes(got)


def test_lines_come_out_whole_and_in_order() -> None:
    out, into = os.pipe()
    lines = Lines(into)
    for number in range(100):
        lines.write(f"{number}\n")
    lines.close()
    said = "".join(f"{number}\n" for number in range(100)).encode()
    assert taken(out, len(said)) == said


def test_after_many_lines_the_next_gather_and_the_end_waits_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAUSE", 3600)
    written: list[bytes] = []
    done = threading.Semaphore(0)

    def put(descriptor: int, content: bytes) -> int:
        written.append(content)
        done.release()
        return 0

    monkeypatch.setattr(module, "_put", put)
    lines, many = Lines(1), LINE * (MANY // len(LINE) + 1)
    for said in ("first\n", "second\n", many):
        lines.write(said)
        assert done.acquire(timeout=GUARD)  # at once
    lines.write("third\n")
    lines.write("fourth\n")
    lines.close()
    assert written == [b"first\n", b"second\n", many.encode(), b"third\nfourth\n"]


def test_a_pipe_that_nobody_reads_makes_nobody_wait_and_what_is_lost_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, into = os.pipe()
    lines = Lines(into)
    written = 0
    while lines.write(LINE):
        written += 1
    assert MOST // len(LINE) - 1 <= written
    for _ in range(6):
        lines.write(LINE)
    assert taken(out, written * len(LINE)) == LINE.encode() * written
    lines.close()
    with caplog.at_level(logging.WARNING):
        lines.write("after\n")
        lines.close()
    assert taken(out, 6) == b"after\n"
    assert "7 log lines were lost" in caplog.text


def test_a_full_disk_and_a_reader_that_left_harm_nothing() -> None:
    full = Lines(os.open("/dev/full", os.O_WRONLY))
    out, into = os.pipe()
    os.close(out)
    left = Lines(into)
    for lines in (full, left):
        for _ in range(3):
            assert lines.write(LINE)
            lines.close()


def test_a_process_without_stderr_says_nothing() -> None:
    lines = Lines(None)
    assert lines.write(LINE) == 0
    assert not lines.isatty()
    lines.flush()
    lines.close()


def test_whether_a_person_reads_is_known() -> None:
    ours, its = pty.openpty()
    assert Lines(its).isatty()
    os.close(ours)
    os.close(its)
    assert not Lines(os.pipe()[1]).isatty()
