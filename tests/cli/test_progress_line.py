"""Lines that are redrawn: their width, their bars, and commands that run behind one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios

import pytest

from cortexd.cli.demo import _show_progress
from cortexd.cli.progress_line import ProgressBar, run_quietly
from cortexd.cli.screen import Screen
from tests.cli.commands import environment
from tests.waiting import GUARD

LONG = "cortexd loading some-organisation/some-model-with-a-long-name-32B on beast"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("fraction", [None, 0.0, 0.37, 1.0])
def test_line_is_narrower_than_the_terminal(width: int, fraction: float | None) -> None:
    line = ProgressBar(Screen(width)).line(fraction, LONG)
    assert len(line) < width


def test_bar_at_60_columns_shows_share_and_what_is_loading() -> None:
    line = ProgressBar(Screen(60)).line(0.5, LONG)
    assert line == " 50%  ████████░░░░░░░  cortexd loading some-organisation/s…"
    assert len(line) == 59


def test_bar_never_goes_back_until_something_else_begins() -> None:
    bar = ProgressBar(Screen())
    shown = [bar.line(share, "m").split()[0] for share in (None, 0.2, 0.1, None, 0.3, 7.0)]
    assert shown == ["?", "20%", "20%", "20%", "30%", "100%"]
    bar.reset()
    assert bar.line(0.1, "m").startswith(" 10%")


def test_unknown_progress_is_shown_as_unknown() -> None:
    assert ProgressBar(Screen()).line(None, "m") == f"   ?  {'░' * 24}  m"
    assert ProgressBar(Screen(is_plain=True)).line(None, "m") == f"   ?  {'-' * 24}  m"


def test_keep_alives_of_the_gateway_become_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = ProgressBar(Screen(60))
    _show_progress(bar, "cortexd loading m on north")
    assert capsys.readouterr().out == "  : cortexd loading m on north\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for text in ("cortexd loading m on north", "cortexd loading m on north 40%"):
        _show_progress(bar, text)
    assert capsys.readouterr().out == (
        f"\r\x1b[K   ?  {'░' * 15}  cortexd loading m on north"
        f"\r\x1b[K 40%  {'█' * 6}{'░' * 9}  cortexd loading m on north"
    )


def test_command_is_one_line_unless_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    noisy = [sys.executable, "-c", "import sys; print('words'); sys.exit(int(sys.argv[1]))"]
    assert run_quietly([*noisy, "0"], "Installing") == 0
    assert capfd.readouterr() == ("Installing\n", "")
    assert run_quietly([*noisy, "3"], "Installing") == 3
    assert capfd.readouterr() == ("Installing\n", "words\n")


async def test_command_on_a_terminal_is_one_line_with_the_seconds_it_takes() -> None:
    program = (
        "import sys; from cortexd.cli.progress_line import run_quietly; "
        "run_quietly([sys.executable, '-c', 'import time; time.sleep(0.5)'], "
        "'Installing ' + 'x' * 90)"
    )
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=its,
        env=environment(),
    )
    os.close(its)
    seen = bytearray()
    async with asyncio.timeout(GUARD):
        while True:
            try:
                more = await asyncio.to_thread(os.read, ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            seen += more
        assert await process.wait() == 0
    os.close(ours)
    drawn = seen.decode().split("\r")
    assert drawn[1].startswith("| Installing xxx")
    assert all(len(line) < 60 for line in drawn[1:-2])
    assert drawn[-2].startswith("\x1b[KInstalling xxx")
