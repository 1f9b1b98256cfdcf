"""The background poller: one small loop per node, so that a hung node delays nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress

from cortexd.config.current import Current
from cortexd.control.registry import Registry
from cortexd.daemon.tasks import Tasks
from cortexd.fleet.observe import Observation, is_described_anew
from cortexd.metrics import Metrics
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import Discovery, Health, Model

JITTER = 0.1  # of the interval, either way, so that many gateways do not poll in step


class Poller:
    """Keeps the registry's picture fresh."""

    def __init__(
        self,
        registry: Registry,
        clients: Mapping[str, NeuronClient],
        current: Current,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._current = current
        self._metrics = metrics
        self._tasks = Tasks()
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._nudges: dict[str, asyncio.Event] = {}
        self._settling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Poll every node at once, then each in its own rhythm."""
        self.begin(self._clients)

    def begin(self, names: Iterable[str]) -> None:
        """Poll these nodes at once, too; one that is polled already is another one now. The fleet
        is settled when they have answered, or had their time."""
        for name in names:
            self.end(name)
            self._nudges[name] = asyncio.Event()
            work = self._keep_polling(name, self._clients[name], self._nudges[name])
            self._loops[name] = self._tasks.spawn(f"poll {name}", work)
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self._tasks.spawn("settle", self._settle())

    def end(self, name: str) -> None:
        """Poll a node no more."""
        self._nudges.pop(name, None)
        if (loop := self._loops.pop(name, None)) is not None:
            loop.cancel()

    def nudge(self, name: str) -> None:
        """Poll a node now: something happened there."""
        if (nudge := self._nudges.get(name)) is not None:  # it may have left
            nudge.set()

    async def close(self) -> None:
        """Stop polling."""
        await self._tasks.close()

    async def _settle(self) -> None:
        await asyncio.sleep(self._current.config.polling.timeout)
        self._registry.settle()

    async def _keep_polling(self, name: str, client: NeuronClient, nudge: asyncio.Event) -> None:
        while True:
            nudge.clear()
            seen = await self._poll(name, client)
            self._registry.observe(name, seen)
            self._metrics.polls.inc(name, "ok" if seen.models is not None else "failed")
            interval = self._current.config.polling.interval
            pause = interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await nudge.wait()

    async def _poll(self, name: str, client: NeuronClient) -> Observation:
        sent = asyncio.get_running_loop().time()
        timeout = self._current.config.polling.timeout
        models, health = await asyncio.gather(
            client.models(timeout), client.health(timeout), return_exceptions=True
        )
        failure = _failure(models)
        known = self._registry.snapshot.nodes[name]
        discovery: Discovery | None = None
        undescribed: str | None = None
        if failure is None and (
            known.hardware is None
            or (
                isinstance(health, Health)
                and is_described_anew(known, health, asyncio.get_running_loop().time())
            )
        ):
            # A node that is not described serves what it has; nothing is placed there.
            try:
                discovery = await client.discovery(timeout)
            except NodeError as error:
                undescribed = str(error)
        return Observation(
            sent=sent,
            received=asyncio.get_running_loop().time(),
            models=models if isinstance(models, list) else None,
            health=health if isinstance(health, Health) else None,
            discovery=discovery,
            failure=failure,
            health_failure=str(health) if isinstance(health, NodeError) else None,
            discovery_failure=undescribed,
        )


def _failure(models: list[Model] | BaseException) -> str | None:
    if isinstance(models, NodeError):
        return str(models)
    if isinstance(models, BaseException):
        raise models
    return None
