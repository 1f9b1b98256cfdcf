"""Certificate authorities: `ca_file` adds to the system's, also for one node, and is read again."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from cortexd.cli.serve import read_settings
from cortexd.config.certificates import Certificates, read_certificates
from cortexd.config.gateway import Config, Neuron, Upstream
from cortexd.gateway.app import Gateway
from tests.fakes import FakeNeuron
from tests.gateway.fleet import Fleet
from tests.waiting import until


def serving(authority: trustme.CA) -> ssl.SSLContext:
    """Return the TLS context of a node with a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@asynccontextmanager
async def started(place: Path, upstream: str = "", **nodes: FakeNeuron) -> AsyncIterator[Fleet]:
    """A gateway whose configuration is a file; `NODE.pem` beside it is the ca_file of a node."""
    text = f'[gateway]\nlisten = "127.0.0.1:0"\nadmin_listen = ""\n[upstream]\n{upstream}\n'
    text += '[polling]\ninterval = "50ms"\nunhealthy_after = 1\n'
    async with AsyncExitStack() as stack:
        for name, node in nodes.items():
            await stack.enter_async_context(node.running())
            text += f'[[neurons]]\nname = "{name}"\nendpoint = "{node.url}"\n'
            if (place / f"{name}.pem").exists():
                text += f'ca_file = "{name}.pem"\n'
        file = place / "cortex.toml"
        await asyncio.to_thread(file.write_text, text)
        settings = await asyncio.to_thread(read_settings, file)
        gateway = Gateway(
            settings.config,
            certificates=settings.certificates,
            state_dir=None,
            reread=partial(read_settings, file),
        )
        await gateway.start()
        stack.push_async_callback(gateway.close)
        await until(lambda: gateway.registry.snapshot.settled)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Fleet(gateway, nodes, client)


def healthy(fleet: Fleet) -> list[str]:
    nodes = fleet.gateway.registry.snapshot.nodes
    return sorted(name for name, node in nodes.items() if node.healthy)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """Make an authority the only one in the system's store."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "system.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    return authority


async def test_ca_file_adds_to_the_authorities_of_the_system(
    system: trustme.CA, tmp_path: Path
) -> None:
    private = trustme.CA()
    private.cert_pem.write_to_path(tmp_path / "private.pem")
    public_node = FakeNeuron({"public": "loaded"}, tls=serving(system))
    private_node = FakeNeuron({"private": "loaded"}, tls=serving(private))
    async with started(tmp_path, 'ca_file = "private.pem"', a=public_node, b=private_node) as fleet:
        assert healthy(fleet) == ["a", "b"]
        for model in ("public", "private"):
            assert (await fleet.ask(model)).status == 200


async def test_ca_file_of_a_node_holds_for_that_node_alone(
    system: trustme.CA, tmp_path: Path
) -> None:
    private = trustme.CA()
    private.cert_pem.write_to_path(tmp_path / "b.pem")
    nodes = {
        "a": FakeNeuron({"public": "loaded"}, tls=serving(system)),
        "b": FakeNeuron({"private": "loaded"}, tls=serving(private)),
        "c": FakeNeuron({"other": "loaded"}, tls=serving(private)),
    }
    async with started(tmp_path, **nodes) as fleet:
        assert healthy(fleet) == ["a", "b"]
        assert (await fleet.ask("private")).status == 200
        reason = fleet.gateway.registry.snapshot.nodes["c"].trouble or ""
        assert "its certificate is not accepted: " in reason
        assert reason.endswith("set ca_file")


async def test_connection_trusted_for_one_node_is_not_used_for_another_at_the_same_address(
    system: trustme.CA, tmp_path: Path
) -> None:
    private = trustme.CA()
    private.cert_pem.write_to_path(tmp_path / "a.pem")
    engine = FakeNeuron({"m": "loaded", "n": "loaded"}, tls=serving(private))
    trusting, other = FakeNeuron({"m": "loaded"}), FakeNeuron({"n": "loaded"})
    async with engine.running():
        for node in (trusting, other):
            node.endpoint_answer = lambda _: web.json_response({"url": engine.url})
        async with started(tmp_path, a=trusting, b=other) as fleet:
            assert (await fleet.ask("m")).status == 200
            answer = await fleet.ask("n")
            assert answer.status == 502
            assert "certificate" in answer.json["error"]["message"]


async def test_reload_reads_the_authorities_again(system: trustme.CA, tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    old.cert_pem.write_to_path(tmp_path / "a.pem")
    node = FakeNeuron({"m": "loaded"}, tls=serving(new))
    async with started(tmp_path, a=node) as fleet:
        assert healthy(fleet) == []
        await asyncio.to_thread(new.cert_pem.write_to_path, tmp_path / "a.pem")
        reloaded = await fleet.gateway.reload.reload()
        assert reloaded.changed == ('"a.pem" holds other certificates',)
        assert not reloaded.restart
        await until(lambda: healthy(fleet) == ["a"])
        assert (await fleet.ask()).status == 200
        assert (await fleet.gateway.reload.reload()).status == "unchanged"


def name_private(file: Path) -> None:
    file.write_text(file.read_text().replace("[upstream]", '[upstream]\nca_file="private.pem"'))


async def test_reload_with_another_ca_file_needs_no_restart(
    system: trustme.CA, tmp_path: Path
) -> None:
    private = trustme.CA()
    node = FakeNeuron({"m": "loaded"}, tls=serving(private))
    async with started(tmp_path, a=node) as fleet:
        assert healthy(fleet) == []
        await asyncio.to_thread(private.cert_pem.write_to_path, tmp_path / "private.pem")
        await asyncio.to_thread(name_private, tmp_path / "cortex.toml")
        reloaded = await fleet.gateway.reload.reload()
        assert (reloaded.changed, reloaded.restart) == (("upstream.ca_file changed",), ())
        await until(lambda: healthy(fleet) == ["a"])
        assert (await fleet.ask()).status == 200


def test_nodes_with_the_same_files_share_what_is_read(tmp_path: Path) -> None:
    authority = trustme.CA()
    for name in ("one.pem", "two.pem"):
        authority.cert_pem.write_to_path(tmp_path / name)
    nodes = (
        Neuron("a", "http://a"),
        Neuron("b", "https://b", ca_file="two.pem"),
        Neuron("c", "https://c", ca_file="two.pem"),
    )
    found = read_certificates(Config(neurons=nodes), tmp_path)
    assert found.of("a") is None
    assert found.of("b") is found.of("c") is not None
    assert set(found.contents) == {"two.pem"}
    found = read_certificates(Config(upstream=Upstream(ca_file="one.pem"), neurons=nodes), tmp_path)
    assert found.of("a") is found.common is not None
    assert found.of("b") is found.of("c") is not found.common
    assert read_certificates(Config(), tmp_path) == Certificates()
