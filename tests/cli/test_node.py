"""`cortexd node`: add a node that answers, list the nodes, remove one."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from cortexd.cli.probe import probe
from cortexd.config.gateway import Config, Neuron
from tests.cli.commands import cortexd
from tests.fakes import FakeNeuron

TEXT = "# mine\n[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "cortex.toml"
    file.write_text(TEXT)
    return file


def content(file: Path) -> str:
    return file.read_text()


def secret(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.touch(0o600)
    file.write_text(text)


async def node(config: Path, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    where = ("--config", str(config))
    status, out, err = await cortexd("node", *arguments, *where, cwd=cwd or config.parent)
    assert status is not None
    return status, out, err


async def test_node_that_answers_is_added_and_what_it_has_is_shown(config: Path) -> None:
    async with FakeNeuron({"m": "loaded", "n": "unloaded"}).running() as neuron:
        status, out, err = await node(config, "add", "b", neuron.url, "--weight", "2")
    assert (status, err) == (0, "")
    assert out == (
        f"{config}: b is added, at {neuron.url}; it has 1 device and 2 models. "
        "Apply it with: cortexd reload\n"
    )
    added = f'\n[[neurons]]\nname = "b"\nendpoint = "{neuron.url}"\nweight = 2.0\n'
    assert content(config) == TEXT + added


async def test_node_is_probed_by_the_name_that_the_system_knows_as_the_gateway_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    getaddrinfo = socket.getaddrinfo

    def with_mdns(host: Any, *rest: Any, **more: Any) -> Any:
        return getaddrinfo("127.0.0.1" if host == "beast.local" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", with_mdns)
    async with FakeNeuron({"m": "loaded"}).running() as neuron:
        url = neuron.url.replace("127.0.0.1", "beast.local")
        said = await asyncio.to_thread(probe, Neuron("beast", url), Config(), tmp_path)
        assert said == "1 device and 1 model"


async def test_node_that_does_not_answer_is_not_added(config: Path) -> None:
    status, out, err = await node(config, "add", "b", "http://127.0.0.1:1")
    assert (status, out) == (1, "")
    assert err.startswith("Nothing was changed: b does not answer at http://127.0.0.1:1: ")
    assert "Is the node agent running there (cortexd neuron)" in err
    assert err.endswith("To add it nevertheless: --no-probe\n")
    assert content(config) == TEXT
    status, out, _ = await node(config, "add", "b", "http://127.0.0.1:1", "--no-probe")
    assert status == 0
    assert "127.0.0.1:1" in content(config)


async def test_server_that_is_no_node_is_not_added(config: Path) -> None:
    neuron = FakeNeuron()
    neuron.raw["/discovery"] = b"<html>"
    async with neuron.running():
        status, _, err = await node(config, "add", "b", neuron.url)
    assert status == 1
    assert "/discovery" in err
    assert content(config) == TEXT


async def test_token_is_asked_for_and_a_wrong_one_is_named(config: Path, tmp_path: Path) -> None:
    for name, token in (("right", "s3cret"), ("wrong", "other")):
        secret(tmp_path / name, token)
    async with FakeNeuron(token="s3cret").running() as neuron:
        add = ("add", "b", neuron.url)
        _, _, err = await node(config, *add)
        assert "b requires a token; name its file with --token-file." in err
        _, _, err = await node(config, *add, "--token-file", "wrong")
        assert "b rejected the token in wrong." in err
        assert content(config) == TEXT
        status, _, _ = await node(config, *add, "--token-file", "right")
    assert status == 0
    assert 'token_file = "right"\n' in content(config)


async def test_node_with_a_certificate_of_its_own_authority_needs_a_ca_file(
    config: Path, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "b.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    async with FakeNeuron({"m": "loaded"}, tls=server).running() as neuron:
        status, _, err = await node(config, "add", "b", neuron.url)
        assert status == 1
        assert "its certificate is not accepted" in err
        assert "set ca_file" in err
        status, out, _ = await node(config, "add", "b", neuron.url, "--ca-file", "b.pem")
    assert status == 0
    assert "it has 1 device and 1 model" in out
    assert 'ca_file = "b.pem"\n' in content(config)


async def test_token_file_argument_is_relative_to_the_current_directory(
    config: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    secret(elsewhere / "t", "s3cret")
    add = ("add", "b", "http://b:1", "--no-probe", "--token-file", "t")
    status, _, _ = await node(config, *add, cwd=elsewhere)
    assert status == 0
    assert f'token_file = "{elsewhere}/t"\n' in content(config)


async def test_name_that_is_taken_is_status_78_before_anything_is_asked(config: Path) -> None:
    status, _, err = await node(config, "add", "a", "http://127.0.0.1:1")
    assert status == 78
    assert "is used twice" in err
    assert content(config) == TEXT


async def test_nodes_are_listed_and_removed(config: Path) -> None:
    status, out, _ = await node(config, "list")
    assert status == 0
    assert out.splitlines()[1].split() == ["a", "http://a:1", "1"]
    [listed] = json.loads((await node(config, "list", "--json"))[1])
    assert (listed["name"], listed["endpoint"]) == ("a", "http://a:1")
    status, out, _ = await node(config, "remove", "a")
    assert (status, out) == (0, f"{config}: a is removed. Apply it with: cortexd reload\n")
    assert (
        "has no nodes. Add one with: cortexd node add NAME URL" in (await node(config, "list"))[1]
    )
