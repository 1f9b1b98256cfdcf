"""Nodes behind https: trusted by the configured certificates, refused without them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from cortexd.config.certificates import Certificates, read_certificates
from cortexd.config.gateway import Config, Security, Upstream
from tests.fakes import FakeNeuron
from tests.gateway.fleet import FAST, running_fleet


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> ssl.SSLContext:
    """What a node with a certificate for 127.0.0.1 listens with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Certificates:
    """What the gateway makes of `ca_file`."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return read_certificates(Config(upstream=Upstream(ca_file="ca.pem")), tmp_path)


async def test_management_and_streams_go_over_tls(
    server: ssl.SSLContext, trusted: Certificates
) -> None:
    neuron = FakeNeuron({"m": "loaded"}, tls=server)
    async with running_fleet(a=neuron, tls=trusted) as fleet:
        for stream in (True, False, True):
            answer = await fleet.ask(stream=stream)
            assert answer.status == 200
            assert b"hel" in answer.body


async def test_a_large_body_and_answer_survive_tls(
    server: ssl.SSLContext, trusted: Certificates
) -> None:
    neuron = FakeNeuron({"m": "loaded"}, tls=server)

    async def echo(request: web.Request, body: object) -> web.Response:
        return web.Response(body=await request.read())

    neuron.infer = echo
    async with running_fleet(a=neuron, tls=trusted) as fleet:
        answer = await fleet.ask(filler="x" * 900_000)
        assert answer.json["filler"] == "x" * 900_000


async def test_node_with_https_that_names_a_clear_endpoint_is_asked_over_tls(
    server: ssl.SSLContext, trusted: Certificates
) -> None:
    heard: list[bytes] = []

    async def eavesdrop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))
        writer.close()

    clear = await asyncio.start_server(eavesdrop, "127.0.0.1", 0)
    port = clear.sockets[0].getsockname()[1]
    neuron = FakeNeuron({"m": "loaded"}, tls=server, token="s3cret")
    neuron.endpoint_answer = lambda _: web.json_response({"url": f"http://localhost:{port}"})
    async with clear, running_fleet(a=neuron, tls=trusted, tokens={"a": "s3cret"}) as fleet:
        assert (await fleet.ask()).status == 200
        assert neuron.inference_headers[0]["Authorization"] == "Bearer s3cret"
        assert not heard


async def test_node_with_https_that_names_a_clear_endpoint_elsewhere_is_refused(
    server: ssl.SSLContext, trusted: Certificates
) -> None:
    neuron = FakeNeuron({"m": "loaded"}, tls=server, token="s3cret")
    neuron.endpoint_answer = lambda _: web.json_response({"url": "http://gpu-lb.internal"})
    config = Config(polling=FAST, security=Security(allowed_inference_hosts=("gpu-lb.internal",)))
    async with running_fleet(a=neuron, tls=trusted, tokens={"a": "s3cret"}, config=config) as fleet:
        answer = await fleet.ask()
        assert (answer.status, answer.json["error"]["code"]) == (422, "endpoint_refused")
        assert "clear text" in answer.json["error"]["message"]


async def test_a_certificate_that_nobody_vouches_for_is_refused(server: ssl.SSLContext) -> None:
    engine = FakeNeuron({"m": "loaded"}, tls=server)
    neuron = FakeNeuron({"m": "loaded"})
    async with engine.running():
        neuron.endpoint_answer = lambda _: web.json_response({"url": engine.url})
        async with running_fleet(a=neuron) as fleet:
            answer = await fleet.ask()
            assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_failed")
            assert "certificate" in answer.json["error"]["message"]
            assert not engine.inference


async def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, trusted: Certificates
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    engine, neuron = FakeNeuron({"m": "loaded"}, tls=context), FakeNeuron({"m": "loaded"})
    async with engine.running():
        neuron.endpoint_answer = lambda _: web.json_response({"url": engine.url})
        async with running_fleet(a=neuron, tls=trusted) as fleet:
            assert (await fleet.ask()).status == 502
            assert not engine.inference


def test_a_file_that_is_no_certificate_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(OSError, match=r"(?i)certificate|crl"):
        read_certificates(Config(upstream=Upstream(ca_file="ca.pem")), tmp_path)
    assert read_certificates(Config(), tmp_path) == Certificates()
