"""Nothing is left behind: traffic of every kind, with faults on both sides, and then a count."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from cortexd.config.gateway import Config, Polling, Upstream
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.functional.faults import Close, Origin, Reset, Script, Send, Wait, refusing
from tests.functional.processes import daemon, gateway_config
from tests.functional.raw import Client, Heard, connected, post
from tests.gateway.fleet import running_fleet
from tests.waiting import GUARD, until

NODES = 4
MODELS = [f"m{number}" for number in range(6)]
CLIENTS = 48  # at the same time
POOLED = 6  # seconds; longer than an idle connection to an upstream is kept

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"


class Traffic:
    """Random requests to a gateway before nodes of random faults; one seed, one sequence."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.origins = [Origin(answer=lambda _: self.answer()) for _ in range(NODES)]
        self.neurons = {
            f"n{number}": FakeNeuron(dict.fromkeys(MODELS, "loaded")) for number in range(NODES)
        }

    @asynccontextmanager
    async def upstreams(self) -> AsyncIterator[None]:
        """Where the nodes serve inference; the nodes themselves are for the caller to start."""
        async with AsyncExitStack() as stack:
            for neuron, origin in zip(self.neurons.values(), self.origins, strict=True):
                await stack.enter_async_context(origin.running())
                neuron.endpoint_answer = self.endpoint(origin.url)
            yield

    @property
    def connections(self) -> int:
        """Connections to upstreams that stand."""
        return sum(not peer.gone.is_set() for origin in self.origins for peer in origin.peers)

    def endpoint(self, url: str) -> Callable[[str], web.Response]:
        return lambda _: web.json_response({"url": url})

    def answer(self) -> Script:
        """What an upstream does with one request."""
        dice = self.dice
        text = "x" * int(2 ** dice.uniform(3, 15))
        if dice.random() < 0.5:
            body = json.dumps({"size": len(text), "text": text, "usage": {}}).encode()
            whole = JSON + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        else:
            events = [
                b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text[at : at + 900].encode()
                for at in range(0, len(text), 900)
            ]
            events.append(b"data: [DONE]\n\n")
            frames = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
            whole = SSE + b"Transfer-Encoding: chunked\r\n\r\n" + frames + b"0\r\n\r\n"
        cut = dice.randrange(len(whole))
        return dice.choices(
            [
                [Send(whole)],
                [Send(whole[:cut]), Wait(0.01), Send(whole[cut:])],
                [Send(whole), Close()],
                [Send(whole[:cut]), Close()],
                [Send(whole[:cut]), Reset()],
                [Send(whole[:cut]), Wait(0.5), Close()],
                [Send(whole + b"HTTP/1.1 200 OK\r\n\r\n")],
                [Send(b"\x15\x03\x01\x00\x02\x02\x46"), Close()],
                [Send(BUSY)],
                [Send(BROKEN)],
                [Close()],
                [Reset()],
            ],
            [50, 10, 4, 4, 4, 1, 2, 2, 4, 2, 2, 2],
        )[0]

    async def send(self, address: tuple[str, int], count: int) -> None:
        """That many requests, by clients that are as random."""
        left = iter(range(count))

        async def visits() -> None:
            for number in left:
                async with connected(address) as client:
                    await self._visit(client, number)
                    while self.dice.random() < 0.6 and client.ended is None:
                        if next(left, None) is None:
                            break
                        await self._visit(client, number)

        await asyncio.gather(*(visits() for _ in range(CLIENTS)))

    async def _visit(self, client: Client, number: int) -> None:
        dice = self.dice
        model = f"invented-{number}" if dice.random() < 0.05 else dice.choice(MODELS)
        asked = {"model": model, "stream": dice.random() < 0.6, "text": "y" * dice.randrange(3000)}
        path = dice.choice(["/v1/chat/completions", "/v1/messages", "/v1/responses"])
        body = json.dumps(asked).encode()
        request = post(body[1:] if dice.random() < 0.02 else body, path=path)
        try:
            await client.send(request)
            manner = dice.random()
            if manner < 0.05:
                await asyncio.sleep(dice.random() * 0.01)
            elif manner < 0.1:
                await client.read_some()
            else:
                self._judge(await client.read_answer())
                return
        except ConnectionError:
            pass
        self.seen["left"] += 1
        client.reset() if dice.random() < 0.5 else client.leave()
        client.ended = "eof"

    def _judge(self, heard: Heard) -> None:
        self.seen[str(heard.status) if heard.complete else "cut"] += 1
        assert heard.fault is None or not heard.complete
        if heard.status == 200 and heard.complete:
            if "event-stream" in str(heard.all("content-type")):
                # A stream of Responses that fails says so in its last event, and ends.
                last = heard.body.rpartition(b"event: ")[2]
                assert heard.body.endswith(b"data: [DONE]\n\n") or last.startswith(
                    b"response.failed\n"
                ), "a false success"
            else:
                answer = json.loads(heard.body)
                assert answer["size"] == len(answer["text"]), "a false success"


class Process:
    """What the gateway's process holds, seen from outside."""

    def __init__(self, pid: int, url: str) -> None:
        self.place = Path("/proc") / str(pid)
        self.url = url

    @property
    def descriptors(self) -> int:
        return len(list((self.place / "fd").iterdir()))

    @property
    def resident(self) -> int:
        """KiB."""
        for line in (self.place / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")

    async def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Metric name → label values → value."""
        async with aiohttp.ClientSession() as session:
            text = await (await session.get(f"{self.url}/metrics")).text()
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found

    async def wait_quiet(self, descriptors: int | None = None) -> None:
        """Until nothing is in flight and at most that many descriptors are open."""
        async with asyncio.timeout(GUARD):
            while True:
                held = sum((await self.samples()).get("cortexd_in_flight", {}).values())
                if not held and (descriptors is None or self.descriptors <= descriptors):
                    return
                await asyncio.sleep(0.1)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_process_is_as_small_after_traffic_with_faults_as_before(tmp_path: Path) -> None:
    """Some 10^4 requests; as many as two minutes hold."""
    traffic, began = Traffic(seed=1), time.monotonic()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(traffic.upstreams())
        for neuron in traffic.neurons.values():
            await stack.enter_async_context(neuron.running())
        deaf = FakeNeuron(dict.fromkeys(MODELS, "loaded"))
        deaf.endpoint_answer = traffic.endpoint(stack.enter_context(refusing()))
        await stack.enter_async_context(deaf.running())
        config = gateway_config(
            {name: neuron.url for name, neuron in traffic.neurons.items()} | {"deaf": deaf.url},
            gateway={"listen": "127.0.0.1:0", "access_log": True},
            upstream={"idle_timeout": "300ms", "first_byte_timeout": "2s"},
        )
        async with daemon(tmp_path, "gateway", "serve", config) as gateway:
            process = Process(gateway.pid, gateway.url)
            at = urlsplit(gateway.url)
            assert at.hostname is not None
            assert at.port is not None
            address = (at.hostname, at.port)

            # So that every pool, cache and series is there, and the collector has had its turn.
            await traffic.send(address, 6000)
            await process.wait_quiet()
            await asyncio.sleep(POOLED)
            idle = process.descriptors + NODES  # a poll may be under way on each
            series = {name: set(samples) for name, samples in (await process.samples()).items()}

            sizes = [process.resident]
            while time.monotonic() - began < 90:
                await traffic.send(address, 2000)
                sizes.append(process.resident)
            await process.wait_quiet(idle)

            print(f"requests {traffic.seen}, resident KiB {sizes}, descriptors {idle}")  # noqa: T201
            middle = len(sizes) // 2
            assert max(sizes[middle:]) - sizes[middle] < 1024, f"KiB: {sizes}"
            after = await process.samples()
            assert not any(after.get("cortexd_load_waiting", {}).values())
            new = {name: set(samples) - series.get(name, set()) for name, samples in after.items()}
            assert not any("invented" in str(labels) for labels in new.values())
            assert {"200", "404", "429", "500", "502", "cut", "left"} <= set(traffic.seen)
            assert "ERROR" not in gateway.log.read_text()


async def test_no_task_is_left_behind() -> None:
    traffic = Traffic(seed=2)
    config = Config(
        polling=Polling(interval=Duration(60)),
        upstream=Upstream(idle_timeout=Duration(0.3), first_byte_timeout=Duration(2)),
    )
    async with traffic.upstreams(), running_fleet(config=config, **traffic.neurons) as fleet:

        def tasks() -> int:
            # Each connection that stands at an origin is a task of the origin's.
            return len(asyncio.all_tasks()) - traffic.connections

        await traffic.send(fleet.gateway.address, 100)  # so that every node is known
        await until(lambda: not fleet.gateway.registry.ledger.in_flight)
        before = tasks()
        await traffic.send(fleet.gateway.address, 400)
        await until(lambda: tasks() <= before)
        assert not fleet.gateway.registry.ledger.in_flight
