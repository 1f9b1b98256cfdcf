"""What every test gets: uvloop, as in production, and an alarm on calls that block the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blockbuster import blockbuster_ctx
from hypothesis import settings


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


# Their engines take every core there is: one after the other, on one worker.
RUN_ENGINES = (
    "cli/test_minilm",
    "cli/test_samples",
    "functional/test_a_swap",
    "functional/test_the_whole_road",
    "neuron/harnesses",
    "neuron/test_app",
    "neuron/test_harness",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that run engines for one worker, and begin with them: they take longest."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).as_posix().startswith(RUN_ENGINES):
            item.add_marker(pytest.mark.xdist_group("engines"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_configure() -> None:
    # A busy machine is no fault of what is tested.
    settings.register_profile("cortexd", deadline=None)
    settings.load_profile("cortexd")
    # Else pytest-asyncio asks for "the present loop", which makes one that nobody ever closes.
    asyncio.set_event_loop(None)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}
