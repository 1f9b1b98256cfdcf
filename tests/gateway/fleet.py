"""A whole gateway in this process, on real sockets, in front of fake neurons."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cortexd.config.catalogue import Profile
from cortexd.config.certificates import Certificates
from cortexd.config.gateway import Config, Neuron, Polling
from cortexd.config.units import Duration
from cortexd.daemon.access import AccessLog
from cortexd.gateway.app import Gateway
from tests.fakes import FakeNeuron
from tests.waiting import GUARD, until

FAST = Polling(interval=Duration(0.05), timeout=Duration(GUARD), unhealthy_after=2)


class Fleet:
    """The gateway, its neurons and a client of it."""

    def __init__(
        self, gateway: Gateway, neurons: Mapping[str, FakeNeuron], client: aiohttp.ClientSession
    ) -> None:
        self.gateway = gateway
        self.neurons = neurons
        self.client = client
        self.url = "http://{}:{}".format(*gateway.address)
        self.admin_url = f"http://{gateway.admin_address}"

    async def ask(
        self,
        model: str = "m",
        path: str = "/v1/chat/completions",
        *,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Answer:
        """One POST; the whole answer."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | fields
        async with self.client.post(self.url + path, json=body, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Answer:
        async with self.client.get(self.url + path) as response:
            return Answer(response.status, response.headers, await response.read())

    async def metric(self, name: str, **labels: str) -> float:
        """See `total`."""
        return total((await self.get("/metrics")).body.decode(), name, **labels)

    def loads(self, node: str) -> list[Any]:
        """The bodies of the loads asked of a node."""
        return self.neurons[node].called("POST", "/models/load")


class Answer:
    """A response that was read to its end."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def total(exposition: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@asynccontextmanager
async def running_fleet(
    *models: Profile,
    config: Config | None = None,
    tokens: Mapping[str, str] | None = None,
    wait_settled: bool = True,
    aliases: dict[str, str] | None = None,
    access: AccessLog | None = None,
    tls: Certificates | None = None,
    admin_listen: str = "127.0.0.1:0",
    state_dir: Path | None = None,
    weights: Mapping[str, float] | None = None,
    **neurons: FakeNeuron,
) -> AsyncIterator[Fleet]:
    """Start neurons (by name) and a gateway in front of them."""
    async with AsyncExitStack() as stack:
        for neuron in neurons.values():
            await stack.enter_async_context(neuron.running())
        base = config or Config(polling=FAST)
        gateway = Gateway(
            msgspec.structs.replace(
                base,
                gateway=msgspec.structs.replace(
                    base.gateway,
                    listen="127.0.0.1:0",
                    admin_listen=admin_listen,
                    shutdown_timeout=Duration(1),
                ),
                neurons=tuple(
                    Neuron(name, neuron.url, weight=(weights or {}).get(name, 1.0))
                    for name, neuron in neurons.items()
                ),
                models=models or base.models,
                aliases=aliases or base.aliases,
            ),
            tokens=tokens,
            certificates=tls,
            access=access,
            state_dir=state_dir,
        )
        await gateway.start()
        stack.push_async_callback(gateway.close)
        client = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=GUARD),
            )
        )
        if wait_settled:
            await until(lambda: gateway.registry.snapshot.settled)
        yield Fleet(gateway, neurons, client)
