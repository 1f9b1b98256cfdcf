from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal

import pytest

from cortexd.daemon.loop import run
from cortexd.daemon.signals import wait_for_stop
from cortexd.daemon.tasks import Tasks


async def test_a_task_has_a_name_and_an_owner_until_it_ends() -> None:
    tasks, go = Tasks(), asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 7

    task = tasks.spawn("work", work())
    assert task.get_name() == "work"
    assert len(tasks) == 1
    gc.collect()
    go.set()
    assert await task == 7
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_a_crash_is_logged_with_the_tasks_name(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()

    async def crash() -> None:
        raise ValueError("oops")

    with pytest.raises(ValueError, match="oops"):
        await tasks.spawn("the crasher", crash())
    assert [record.getMessage() for record in caplog.records] == ["task the crasher crashed"]
    assert caplog.records[0].levelno == logging.ERROR


async def test_closing_the_owner_cancels_and_awaits_them() -> None:
    tasks, ended = Tasks(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tasks.spawn("work", work())
    await asyncio.sleep(0)
    await tasks.close()
    assert ended.is_set()
    assert len(tasks) == 0


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_wait_and_the_handlers_are_gone_after(
    which: signal.Signals,
) -> None:
    before = signal.getsignal(which)
    waiting = asyncio.create_task(wait_for_stop())
    await asyncio.sleep(0)
    os.kill(os.getpid(), which)
    assert await waiting is which
    assert signal.getsignal(which) in (before, signal.SIG_DFL, signal.default_int_handler)


def test_the_loop_is_uvloop_and_the_result_comes_back() -> None:
    async def which() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(which()) == "uvloop"
