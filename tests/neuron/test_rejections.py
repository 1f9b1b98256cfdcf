from __future__ import annotations

import pytest

from cortexd.neuron.rejections import MAX_ADDRESSES, MAX_LINES, PAUSE, RejectionLog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_address_is_named_once_a_minute_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    rejections = RejectionLog(clock)
    for _ in range(50):
        rejections.note("10.0.0.1", "GET /models", has_token=True)
        rejections.note("10.0.0.2", "POST /models/load", has_token=False)
    assert caplog.messages == [
        "rejected GET /models from 10.0.0.1: wrong token; it differs from the one in [neuron] "
        "token_file",
        "rejected POST /models/load from 10.0.0.2: no token; set token_file for this node in the "
        "gateway's configuration",
    ]
    caplog.clear()
    clock.now += PAUSE
    rejections.note("10.0.0.1", "GET /health", has_token=True)
    assert caplog.messages[0].endswith("token_file (49 more since the last such line)")
    assert len(caplog.messages) == 1


def test_many_addresses_neither_fill_the_log_nor_the_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    rejections = RejectionLog(clock)
    for _ in range(3):
        caplog.clear()
        for number in range(10 * MAX_ADDRESSES):
            rejections.note(f"fd00::{number:x}", "GET /models", has_token=True)
        assert len(caplog.messages) == MAX_LINES
        assert len(rejections._said) <= MAX_ADDRESSES
        assert len(rejections._unsaid) <= MAX_ADDRESSES
        clock.now += PAUSE
