"""What every test gets: uvloop, as in production, and an alarm on calls that block the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("cortexd") as alarm:
        # /proc is memory: reading it waits for nothing.
        for call in ("io.BufferedReader.read", "io.TextIOWrapper.read", "os.listdir"):
            if call in alarm.functions:
                alarm.functions[call].can_block_in(
                    "prometheus_client/process_collector.py", "collect"
                )
        yield


def pytest_configure() -> None:
    # Else pytest-asyncio asks for "the present loop", which makes one that nobody ever closes.
    asyncio.set_event_loop(None)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}
