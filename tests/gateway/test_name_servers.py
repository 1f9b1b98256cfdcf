"""A gateway whose name servers do not answer: it serves other hosts, and it stops."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import aiohttp
import pytest

from cortexd.config.gateway import Config, Gateway, Neuron
from cortexd.daemon.resolver import Resolver
from cortexd.gateway import app
from cortexd.proxy.browser import is_address
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, Fleet
from tests.waiting import GUARD, until

real_getaddrinfo = socket.getaddrinfo


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make both c-ares and getaddrinfo wait for a name server that never answers."""
    is_over = threading.Event()

    def hang(host: Any, *args: Any, **options: Any) -> Any:
        if host is None or is_address(host):
            return real_getaddrinfo(host, *args, **options)
        is_over.wait(10 * GUARD)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        where = "{}:{}".format(*server.getsockname())
        monkeypatch.setattr(app, "Resolver", partial(Resolver, nameservers=[where]))
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        yield
        is_over.set()


async def test_node_at_localhost_is_served_and_the_gateway_stops(silent: None) -> None:
    neuron = FakeNeuron({"m": "loaded"})
    async with neuron.running(), asyncio.timeout(GUARD):
        dead = [f"beast{number}" for number in range(10)]
        dead += [f"gpu{number}.internal" for number in range(10)]
        gateway = app.Gateway(
            Config(
                gateway=Gateway(listen="localhost:0", admin_listen=""),
                polling=FAST,
                neurons=(
                    *(Neuron(name, f"http://{name}:13131") for name in dead),
                    Neuron("a", f"http://localhost:{neuron.port}"),
                    Neuron("b", f"http://127.0.0.1:{neuron.port}"),
                ),
            )
        )
        await gateway.start()
        try:
            nodes = gateway.registry
            await until(
                lambda: {"a", "b"} == {n.name for n in nodes.snapshot.nodes.values() if n.healthy}
            )
            async with aiohttp.ClientSession() as session:
                answer = await Fleet(gateway, {}, session).ask()
                assert answer.status == 200
        finally:
            await gateway.close()
