from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from cortexd.nodes.client import MAX_URL, NeuronClient, NodeError
from cortexd.wire import neuron as wire
from cortexd.wire.neuron import LOADED, Discovery, Health, LoadRequest, Model, UnloadRequest
from tests.fakes import FakeNeuron


@pytest.fixture
async def neuron() -> AsyncIterator[FakeNeuron]:
    async with FakeNeuron({"a/b": LOADED}).running() as fake:
        yield fake


@pytest.fixture
async def client(neuron: FakeNeuron) -> AsyncIterator[NeuronClient]:
    async with aiohttp.ClientSession() as session:
        yield NeuronClient(session, neuron.url, token="s3cret", token_source="beast.token")


async def test_the_reads_are_typed(client: NeuronClient, neuron: FakeNeuron) -> None:
    assert await client.models(5) == [Model("a/b", "loaded")]
    assert (await client.discovery(5)).devices[0].vram_total_mb == 24000
    assert (await client.health(5)).uptime_secs is not None


async def test_an_id_is_one_segment_of_the_path(client: NeuronClient, neuron: FakeNeuron) -> None:
    neuron.endpoint_answer = lambda _: web.json_response({"url": "http://localhost:1"})
    assert await client.endpoint("a/b c%?", 5) == "http://localhost:1"
    assert neuron.calls[-1][1] == "/models/a%2Fb%20c%25%3F/endpoint"


async def test_a_token_goes_with_every_call(client: NeuronClient, neuron: FakeNeuron) -> None:
    neuron.token = "s3cret"
    assert await client.models(5)
    neuron.token = "another"
    with pytest.raises(NodeError) as error:
        await client.models(5)
    assert error.value.status == 401
    assert str(error.value) == "it rejected the token in beast.token"


async def test_missing_token_is_another_error_than_a_wrong_one(neuron: FakeNeuron) -> None:
    neuron.token = "s3cret"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NodeError) as error:
            await NeuronClient(session, neuron.url, token_source="beast.token").models(5)
    assert error.value.status == 401
    assert str(error.value) == "it requires a token: set token_file"


async def test_null_in_an_optional_field_means_absent(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    names = Model.__struct_fields__[2:]
    neuron.models = {"m": {"id": "m", "status": "loaded"} | dict.fromkeys(names)}
    assert await client.models(5) == [Model("m", "loaded")]


async def test_unknown_fields_are_ignored(client: NeuronClient, neuron: FakeNeuron) -> None:
    neuron.models = {"m": {"id": "m", "status": "loaded", "colour": {"deep": [1]}}}
    assert await client.models(5) == [Model("m", "loaded")]


@pytest.mark.parametrize("entry", [{"id": "m"}, {"status": "loaded"}, {"id": 1, "status": "x"}])
async def test_a_missing_required_field_fails_the_call(
    client: NeuronClient, neuron: FakeNeuron, entry: dict[str, object]
) -> None:
    neuron.models = {"m": entry}
    with pytest.raises(NodeError, match="not what a neuron answers"):
        await client.models(5)


async def test_an_answer_without_end_is_cut_at_its_bound(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    async def endless(body: object) -> web.Response:
        return web.Response(body=b" " * (9 << 20))

    neuron.load_answer = endless
    with pytest.raises(NodeError, match="over 8 MiB"):
        await client.load(LoadRequest("m"))


async def test_that_somebody_else_loaded_it_is_a_success(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    async def raced(body: object) -> web.Response:
        return web.json_response({"error": {"message": "Model already loaded"}}, status=400)

    neuron.load_answer = raced
    assert await client.load(LoadRequest("m")) == LOADED


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        ({"error": "no such quant"}, "422 no such quant", None),
        (
            {"error": {"message": "too big", "code": "insufficient_vram"}},
            "too big",
            "insufficient_vram",
        ),
        ({"error": "busy", "code": "busy"}, "422 busy", "busy"),
        ([1], r"422 \[1\]", None),
    ],
)
async def test_a_refused_load_carries_the_nodes_own_words(
    client: NeuronClient, neuron: FakeNeuron, answer: object, words: str, code: str | None
) -> None:
    async def refuse(body: object) -> web.Response:
        return web.json_response(answer, status=422)

    neuron.load_answer = refuse
    with pytest.raises(NodeError, match=words) as error:
        await client.load(LoadRequest("m"))
    assert (error.value.status, error.value.code) == (422, code)


async def test_a_load_is_asked_for_as_the_wire_says(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    request = LoadRequest("hf:m", "llamacpp", "Q4", 2, [0, 1])
    assert await client.load(request) == LOADED
    assert neuron.called("POST", "/models/load") == [
        {
            "model_id": "hf:m",
            "harness": "llamacpp",
            "quant": "Q4",
            "tensor_parallel": 2,
            "devices": [0, 1],
        }
    ]


async def test_a_silent_node_is_given_up_on(client: NeuronClient, neuron: FakeNeuron) -> None:
    neuron.answer_polls.clear()
    with pytest.raises(NodeError, match=r"no answer within 0\.05 s"):
        await client.models(0.05)


async def test_a_node_that_hangs_up_is_an_error_in_words(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    neuron.unreachable = True
    with pytest.raises(NodeError, match="/models: "):
        await client.models(5)


async def test_nobody_there_is_an_error_in_words() -> None:
    async with FakeNeuron().running() as gone:
        url = gone.url
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NodeError, match=r"/health: can't connect to .*: Connection refused"):
            await NeuronClient(session, url).health(5)


async def test_an_unload_says_whether_only_if_idle(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    neuron.unload_answer = lambda body: web.json_response(
        {"error": "busy", "code": "busy"}, status=409
    )
    with pytest.raises(NodeError) as error:
        await client.unload(UnloadRequest("m", if_idle=True), 5)
    assert error.value.code == "busy"
    assert neuron.called("POST", "/models/unload") == [{"model_id": "m", "if_idle": True}]


async def test_a_call_that_is_cancelled_leaves_nothing_running(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    neuron.release.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.load(LoadRequest("m"))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'[{"id":"\xff","status":"loaded"}]',
        b'[{"id":"\\ud800","status":"loaded"}]',
        b'[{"id":"m","status":"loaded","vram_used_mb":1e400}]',
        b'[{"id":"m","status":"loaded","vram_used_mb":' + b"9" * 5000 + b"}]",
        b'[{"id":"m","status":"loaded","x":' + b"[" * 100_000,
        b'{"id":"m","status":"loaded"}',
        b"",
    ],
)
async def test_what_can_not_be_decoded_fails_the_call_in_words(
    client: NeuronClient, neuron: FakeNeuron, body: bytes
) -> None:
    neuron.raw["/models"] = body
    with pytest.raises(NodeError, match="/models: not what a neuron answers") as error:
        await client.models(5)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


async def test_an_endpoint_without_end_is_not_quoted_to_anybody(
    client: NeuronClient, neuron: FakeNeuron
) -> None:
    neuron.endpoint_answer = lambda _: web.json_response({"url": "x" * (MAX_URL + 1)})
    with pytest.raises(NodeError, match="a URL of over 2048 characters"):
        await client.endpoint("a/b", 5)


WORDS = sorted(
    {
        field
        for struct in vars(wire).values()
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct)
        for field in struct.__struct_fields__
    }
)
atoms = st.sampled_from(
    [
        *(b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"-1e308", b"NaN", b"{", b""),
        *(b"9" * 400, b"9" * 5000, b"[" * 20_000),
        *(b'""', b'"loaded"', b'"\xff"', b'"\\ud800"', b'"\\u001b[2J"'),
    ]
)
documents = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: b"[%b]" % b",".join(parts)),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=6).map(
            lambda fields: (
                b"{%b}"
                % b",".join(b'"%b":%b' % (key.encode(), value) for key, value in fields.items())
            )
        ),
    ),
    max_leaves=12,
)


def test_whatever_a_node_answers_is_a_value_or_an_error_in_words() -> None:
    async def call(client: NeuronClient) -> None:
        for answer, kind in (
            (client.models(5), list),
            (client.health(5), Health),
            (client.discovery(5), Discovery),
            (client.endpoint("m", 5), str),
            (client.load(LoadRequest("m")), str),
            (client.unload(UnloadRequest("m"), 5), str),
        ):
            try:
                assert isinstance(await answer, kind)
            except NodeError as error:
                assert str(error).isprintable()
                assert len(str(error)) < 1000

    neuron = FakeNeuron()

    @given(documents | st.binary())
    @example(b'{"url":"http://localhost:1","status":"loaded","devices":[]}')
    def check(body: bytes) -> None:
        paths = ("/models", "/health", "/discovery", "/models/load", "/models/unload")
        neuron.raw = dict.fromkeys((*paths, "/models/m/endpoint"), body)
        runner.run(call(client))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        running = neuron.running()
        runner.run(running.__aenter__())
        session = runner.run(_session())
        client = NeuronClient(session, neuron.url)
        try:
            check()
        finally:
            runner.run(session.close())
            runner.run(running.__aexit__(None, None, None))


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def test_node_without_tls_where_https_is_configured_is_an_error_in_words(
    neuron: FakeNeuron,
) -> None:
    async with aiohttp.ClientSession() as session:
        client = NeuronClient(session, neuron.url.replace("http:", "https:"))
        with pytest.raises(NodeError, match=r"no TLS: .*; does it listen with https\?"):
            await client.health(5)
