"""A fleet in which models have to make room for each other: two real neurons with memory for one
model each, three models, and a gateway; and clients that take nothing but whole answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import anthropic
import openai

from tests.functional.processes import Daemon, daemon, gateway_config, neuron_config
from tests.gateway.fleet import total
from tests.neuron.engines import smollm2
from tests.waiting import eventually

MODELS: Final = ("chat", "code", "mail")
# MiB. One of these models takes some 200 when it is fresh and 250 when it is warm: beside one there
# is not even room for the 93 of another one's file, which is what a neuron asks for.
BUDGET: Final = 280
NEEDED: Final = 250
PATIENT: Final = 60.0  # seconds; nobody waits so long here, however slow the machine is

_UNLOADED: Final = re.compile(r"unloaded '(\w+)' from (\w+): (.+)")
_WHY: Final = {
    "room": re.compile(r"makes room for '\w+', which needs [\d,]+ MiB"),
    "idle": re.compile(r"nobody has asked for it for \d+ s"),
}


@dataclass
class Answers:
    """What clients have heard. waits: seconds to the first byte of each answer that was whole."""

    waits: list[float] = field(default_factory=list)
    streams: int = 0
    routes: Counter[str] = field(default_factory=Counter)


class Household:
    """The processes, and what they say of themselves."""

    def __init__(self, gateway: Daemon, neurons: dict[str, Daemon]) -> None:
        self.gateway = gateway
        self.neurons = neurons
        self.session = aiohttp.ClientSession(
            gateway.url, timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENT)
        )
        self.openai = openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENT
        )
        self.anthropic = anthropic.AsyncAnthropic(
            base_url=gateway.url, api_key="none", max_retries=0, timeout=PATIENT
        )

    async def close(self) -> None:
        await self.session.close()
        await self.openai.close()
        await self.anthropic.close()

    async def get(self, path: str) -> Any:
        async with self.session.get(path) as answer:
            return await answer.json()

    async def metrics(self) -> str:
        async with self.session.get("/metrics") as answer:
            return await answer.text()

    async def residents(self) -> dict[str, list[str]]:
        """Node → the models that are loaded there, as the gateway sees it."""
        return {
            node["name"]: [one["id"] for one in node["models"] if one["status"] == "loaded"]
            for node in (await self.get("/api/fleet"))["nodes"]
        }

    def said(self) -> list[str]:
        """The messages in the gateway's log."""
        events = map(json.loads, self.gateway.log.read_text().splitlines())
        return [event["msg"] for event in events if "msg" in event]  # the access log has none

    def unloads(self) -> Counter[tuple[str, str, str]]:
        """(model, node, reason) of every unload in the log, each with its reason in full."""
        found: Counter[tuple[str, str, str]] = Counter()
        for line in self.said():
            if (unloaded := _UNLOADED.fullmatch(line)) is not None:
                model, node, words = unloaded.groups()
                reason = next(name for name, why in _WHY.items() if why.fullmatch(words))
                found[model, node, reason] += 1
        return found

    async def assert_log_and_metrics_agree(self) -> None:
        """Every unload is told once, by the gateway's log, its metrics, and the neurons' logs."""
        told, metrics = self.unloads(), await self.metrics()
        for (model, node, reason), count in told.items():
            labels = {"model": model, "node": node, "reason": reason}
            assert total(metrics, "cortexd_evictions_total", **labels) == count
        assert total(metrics, "cortexd_evictions_total") == told.total()
        for name, neuron in self.neurons.items():
            there = sum(count for (_, node, _), count in told.items() if node == name)
            assert neuron.log.read_text().count('"msg": "unloading ') == there

    async def assert_nothing_is_left(self) -> None:
        """Nobody runs, nobody waits, no load, no gate, and no memory that is promised to anyone."""
        await eventually(self._is_quiet)
        fleet, metrics = await self.get("/api/fleet"), await self.metrics()
        assert not total(metrics, "cortexd_in_flight")
        assert not total(metrics, "cortexd_load_waiting")
        assert not total(metrics, "cortexd_oldest_waiter_seconds")
        assert not fleet["loads"]
        assert not any(model["gated"] for node in fleet["nodes"] for model in node["models"])

    async def _is_quiet(self) -> bool:
        """That it takes a poll until the nodes have said so is no fault."""
        fleet = await self.get("/api/fleet")
        told = {one["node"]: one for one in (await self.get("/api/explain?model=chat"))["nodes"]}
        return not (
            fleet["totals"]["in_flight"]
            or fleet["totals"]["waiting"]
            or any(
                model["running"] or model["queued"]
                for node in fleet["nodes"]
                for model in node["models"]
            )
            # What a load may count on is what its device has free: nothing is reserved.
            or any(
                told[node["name"]]["free_mb"] != {"0": node["devices"][0]["free_mb"]}
                for node in fleet["nodes"]
            )
        )

    # Three clients. Each insists on every token that it has asked for.

    async def stream(self, model: str, words: str, tokens: int, heard: Answers) -> None:
        """Of the official OpenAI SDK."""
        clock = asyncio.get_running_loop().time
        began, first, usage, reason = clock(), None, None, None
        answer = await self.openai.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": words}],
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in answer.parse():
            first = first or clock()
            usage = chunk.usage or usage
            reason = next((one.finish_reason for one in chunk.choices), None) or reason
        assert usage is not None, "a stream without an end"
        assert (usage.completion_tokens, reason) == (tokens, "length"), f"cut: {usage}, {reason}"
        heard.streams += 1
        self._note(heard, (first or clock()) - began, answer.headers)

    async def message(self, model: str, words: str, tokens: int, heard: Answers) -> None:
        """Of the official Anthropic SDK, in one piece."""
        clock = asyncio.get_running_loop().time
        began = clock()
        answer = await self.anthropic.messages.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": words}],
            max_tokens=tokens,
        )
        message = await answer.parse()
        # The engine does not know ignore_eos on this path: it may come to an end of its own.
        assert message.stop_reason in {"end_turn", "max_tokens"}, f"cut: {message}"
        assert 0 < message.usage.output_tokens <= tokens, f"cut: {message}"
        if message.stop_reason == "max_tokens":
            assert message.usage.output_tokens == tokens, f"cut: {message}"
        self._note(heard, clock() - began, answer.headers)

    async def raw(self, model: str, words: str, tokens: int, heard: Answers) -> None:
        """Of no SDK: what it is told, byte for byte, is a whole stream with its end."""
        clock = asyncio.get_running_loop().time
        began = clock()
        body = {
            "model": model,
            "prompt": words,
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
        }
        async with self.session.post("/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            first = await answer.content.readany()
            waited = clock() - began
            events = (first + await answer.content.read()).decode().split("\n\n")
        events = [event for event in events if event and not event.startswith(":")]
        assert events[-1] == "data: [DONE]", f"cut: {events[-1]}"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        assert not any("error" in chunk for chunk in chunks), chunks[-1]
        last = chunks[-1]
        told = (
            last["usage"]["completion_tokens"]
            if "usage" in last
            else last["timings"]["predicted_n"]
        )
        assert told == tokens, f"cut: {last}"
        heard.streams += 1
        self._note(heard, waited, answer.headers)

    def _note(self, heard: Answers, waited: float, headers: Any) -> None:
        heard.waits.append(waited)
        # A head that went out while the model was loading says all but the node.
        heard.routes[headers["x-cortex-route"]] += 1


@asynccontextmanager
async def household(
    place: Path, *, read_mb_s: int | None = None, **sections: Any
) -> AsyncIterator[Household]:
    """read_mb_s: how slow the disks are. sections: of the gateway's configuration.

    Every model is in the library of both neurons, and south knows `mail` by itself, too: it can
    wake that without being asked to load it.
    """
    mail = {"id": "mail", "path": str(smollm2()), "context": 2048, "vram_mb": NEEDED}
    known = {"north": [], "south": [mail]}
    processors = sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as stack:
        neurons = {}
        for number, (name, models) in enumerate(known.items(), start=2):
            (place / name).mkdir()
            config = neuron_config(
                place / name, *models, host=f"127.0.0.{number}", memory_mb=BUDGET
            )
            for model in MODELS:
                (place / name / "models" / f"{model}.gguf").symlink_to(smollm2())
            if read_mb_s is not None:
                config["paths"]["read_mb_s"] = read_mb_s
            neurons[name] = await stack.enter_async_context(daemon(place, name, "neuron", config))
            # Two hosts do not take each other's processor away; engines that share one wait for
            # threads of theirs that do not run. They inherit this.
            os.sched_setaffinity(neurons[name].pid, {processors[number % len(processors)]})
        gateway = await stack.enter_async_context(
            daemon(
                place,
                "gateway",
                "serve",
                gateway_config(
                    {name: neuron.url for name, neuron in neurons.items()},
                    *({"id": model, "vram_mb": NEEDED} for model in MODELS),
                    **sections,
                ),
            )
        )
        house = Household(gateway, neurons)
        stack.push_async_callback(house.close)
        yield house
