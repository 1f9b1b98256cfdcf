"""What the official SDKs make of a stream that the gateway has opened by itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Loading, Polling
from cortexd.config.units import Duration
from tests.fakes import FakeNeuron
from tests.gateway.dialects import CHAT, RESPONSES, engine
from tests.gateway.fleet import GUARD, Fleet, running_fleet

CONFIG = Config(
    polling=Polling(interval=Duration(0.05), timeout=Duration(2), unhealthy_after=2),
    loading=Loading(keepalive=Duration(0.03)),
)
HI: Any = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def loading(neuron: FakeNeuron | None = None) -> AsyncIterator[tuple[Fleet, FakeNeuron]]:
    """A gateway before one node whose loads wait until they are let go."""
    neuron = neuron or engine()
    async with running_fleet(Profile("m"), config=CONFIG, a=neuron) as fleet:
        yield fleet, neuron


def broken() -> FakeNeuron:
    """A node where every load fails, once it is let go."""
    neuron = engine()

    async def fail(body: dict[str, Any]) -> web.Response:
        await neuron.release.wait()
        return web.json_response({"error": "no disk"}, status=500)

    neuron.load_answer = fail
    return neuron


@asynccontextmanager
async def openai_client(fleet: Fleet) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=GUARD
    ) as client:
        yield client


@asynccontextmanager
async def anthropic_client(fleet: Fleet) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=fleet.url, api_key="none", max_retries=0, timeout=GUARD
    ) as client:
        yield client


async def test_openai_chat_reads_over_it() -> None:
    async with loading() as (fleet, neuron), openai_client(fleet) as client:
        # That there is a stream at all before the model is loaded is the first sign of life.
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        assert not neuron.inference
        neuron.release.set()
        said = [chunk.choices[0].delta.content async for chunk in stream]
        assert said == [None, "hel", "lo"]


async def test_openai_completions_read_over_it() -> None:
    async with loading() as (fleet, neuron), openai_client(fleet) as client:
        stream = await client.completions.create(model="m", prompt="hi", stream=True)
        assert not neuron.inference
        neuron.release.set()
        assert [chunk.choices[0].text async for chunk in stream] == ["", "hel", "lo"]


async def test_openai_responses_read_over_it() -> None:
    async with loading() as (fleet, neuron), openai_client(fleet) as client:
        stream = await client.responses.create(model="m", input="hi", stream=True)
        assert not neuron.inference
        neuron.release.set()
        events: list[Any] = [event async for event in stream]
        assert [event.type for event in events] == [
            json.loads(event.partition(b"data: ")[2])["type"]
            for event in RESPONSES.answer.split(b"\n\n")[:-1]
        ]
        assert events[-1].response.output_text == "hello"


async def test_openai_responses_helper_skips_keep_alive_comments() -> None:
    async with (
        loading() as (fleet, neuron),
        openai_client(fleet) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        assert not neuron.inference
        neuron.release.set()
        response = await stream.get_final_response()
        assert (response.id, response.output_text) == ("resp_engine", "hello")


@pytest.mark.parametrize("has_role", [False, True])
async def test_openai_chat_helper_skips_the_empty_chunk(has_role: bool) -> None:
    """It puts deltas together: neither a role nor an id may come twice."""
    role = b'{"role": "assistant", "content": "'
    answer = CHAT.answer.replace(b'{"content": "', role, 1) if has_role else CHAT.answer

    async def infer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(answer)
        return response

    async with (
        loading(engine(answer=infer)) as (fleet, neuron),
        openai_client(fleet) as client,
        client.chat.completions.stream(model="m", messages=HI) as stream,
    ):
        assert not neuron.inference
        neuron.release.set()
        completion = await stream.get_final_completion()
        assert completion.id == "chatcmpl-1"
        assert completion.choices[0].message.content == "hello"


async def test_anthropic_messages_read_over_it() -> None:
    async with loading() as (fleet, neuron), anthropic_client(fleet) as client:
        stream = await client.messages.create(model="m", max_tokens=9, messages=HI, stream=True)
        assert not neuron.inference
        neuron.release.set()
        kinds = [event.type async for event in stream]
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


async def test_anthropics_helper_reads_over_it() -> None:
    async with (
        loading() as (fleet, neuron),
        anthropic_client(fleet) as client,
        client.messages.stream(model="m", max_tokens=9, messages=HI) as stream,
    ):
        assert not neuron.inference
        neuron.release.set()
        assert await stream.get_final_text() == "hello"


async def test_openai_chat_raises() -> None:
    async with loading(broken()) as (fleet, neuron), openai_client(fleet) as client:
        stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
        neuron.release.set()
        with pytest.raises(openai.APIError, match="no disk") as raised:
            async for _ in stream:
                pass
        assert raised.value.code == "cold_load_failed"


async def test_openai_completions_raise() -> None:
    async with loading(broken()) as (fleet, neuron), openai_client(fleet) as client:
        stream = await client.completions.create(model="m", prompt="hi", stream=True)
        neuron.release.set()
        with pytest.raises(openai.APIError, match="no disk") as raised:
            async for _ in stream:
                pass
        assert raised.value.code == "cold_load_failed"


async def test_openai_responses_end_in_an_event_of_their_own() -> None:
    async with loading(broken()) as (fleet, neuron), openai_client(fleet) as client:
        stream = await client.responses.create(model="m", input="hi", stream=True)
        neuron.release.set()
        events: list[Any] = [event async for event in stream]
        assert [event.type for event in events] == ["response.created", "response.failed"]
        assert events[-1].response.id == events[0].response.id
        assert events[-1].response.error.code == "cold_load_failed"
        assert "no disk" in events[-1].response.error.message
        assert [event.sequence_number for event in events] == [0, 1]


async def test_openais_responses_helper_has_no_answer_then() -> None:
    async with (
        loading(broken()) as (fleet, neuron),
        openai_client(fleet) as client,
        client.responses.stream(model="m", input="hi") as stream,
    ):
        neuron.release.set()
        kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.failed"
        with pytest.raises(RuntimeError, match="completed"):
            await stream.get_final_response()


async def test_anthropic_raises() -> None:
    async with loading(broken()) as (fleet, neuron), anthropic_client(fleet) as client:
        stream = await client.messages.create(model="m", max_tokens=9, messages=HI, stream=True)
        neuron.release.set()
        with pytest.raises(anthropic.APIError, match="no disk"):
            async for _ in stream:
                pass


async def test_openais_responses_helper_reads_the_end_of_a_broken_stream() -> None:
    """One response id and rising numbers to the end, and the end is no broken connection."""
    for count in (1, 4, 6):
        sent = b"".join(each + b"\n\n" for each in RESPONSES.answer.split(b"\n\n")[:count])

        async def break_off(
            request: web.Request, _: dict[str, Any], sent: bytes = sent
        ) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(sent)
            assert request.transport is not None
            request.transport.abort()
            return response

        neuron = engine({"m": "loaded"}, break_off)
        async with (
            loading(neuron) as (fleet, _),
            openai_client(fleet) as client,
            client.responses.stream(model="m", input="hi") as stream,
        ):
            events = [event async for event in stream]
        *_, last = events
        assert last.type == "response.failed"
        assert last.response.id == "resp_engine"
        assert last.response.status == "failed"
        assert last.response.error is not None
        assert last.response.error.code == "upstream_interrupted"
        assert [event.sequence_number for event in events] == list(range(count + 1))
