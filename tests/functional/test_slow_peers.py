"""Hundreds of clients that never finish their request, and one that does."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fakes import FakeNeuron
from tests.functional.processes import daemon, gateway_config
from tests.functional.raw import connected, post

SLOW = 500
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'


@pytest.mark.soak
async def test_slow_senders_delay_nobody_else(tmp_path: Path) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with neuron.running(), AsyncExitStack() as stack:
        config = gateway_config({"a": neuron.url})
        gateway = await stack.enter_async_context(daemon(tmp_path, "gateway", "serve", config))
        at = urlsplit(gateway.url)
        assert at.hostname is not None
        assert at.port is not None
        whole = post(BODY)
        for number in range(SLOW):
            slow = await stack.enter_async_context(connected((at.hostname, at.port)))
            await slow.send(whole[: 20 if number % 2 else -5])  # in the head, or in the body
        took = []
        for _ in range(50):
            began = time.monotonic()
            async with connected((at.hostname, at.port)) as fresh:
                assert (await fresh.ask(whole)).status == 200
            took.append(time.monotonic() - began)
        assert sorted(took)[len(took) // 2] < 0.2, took
        assert len(neuron.inference) == 50
