"""Warnings about listeners that are open to the network, and about unknown harnesses."""

from __future__ import annotations

import pytest

from cortexd.config import neuron
from cortexd.config.catalogue import Profile
from cortexd.config.check_warnings import alias_warnings, gateway_warnings, neuron_warnings
from cortexd.config.gateway import Config, Gateway

LOCAL = Gateway(listen="127.0.0.1:8080")


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", ":8080", "[::]:8080", "10.0.0.7:1", "gpu:1"])
def test_a_listener_beyond_loopback_is_warned_about_with_a_remedy(listen: str) -> None:
    [warning] = gateway_warnings(Config(gateway=Gateway(listen=listen)))
    assert warning.key == ("gateway", "listen")
    assert f"anyone who can reach {listen} can use every model" in warning.found
    assert "listen on 127.0.0.1, or allow only your clients" in warning.found


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "localhost:1", "127.9.9.9:1"])
def test_a_listener_on_loopback_is_not_warned_about(listen: str) -> None:
    assert list(gateway_warnings(Config(gateway=Gateway(listen=listen)))) == []


@pytest.mark.parametrize("listen", ["0.0.0.0:8081", ":8081", "[::]:8081", "gateway:8081"])
def test_operators_listener_beyond_loopback_is_warned_about(listen: str) -> None:
    gateway = Gateway(listen="127.0.0.1:8080", admin_listen=listen)
    [warning] = gateway_warnings(Config(gateway=gateway))
    assert warning.key == ("gateway", "admin_listen")
    assert f"anyone who can reach {listen} can load and unload models" in warning.found
    assert "listen on 127.0.0.1 or on a socket file" in warning.found


@pytest.mark.parametrize("listen", ["", "unix:/run/x.sock", "LOCALHOST:1", "[::1]:8081"])
def test_operators_listener_on_this_machine_alone_is_not_warned_about(listen: str) -> None:
    gateway = Gateway(listen="127.0.0.1:8080", admin_listen=listen)
    assert list(gateway_warnings(Config(gateway=gateway))) == []


def test_warning_is_about_the_real_listen_address() -> None:
    assert list(gateway_warnings(Config(), "unix:/run/cortexd.sock")) == []
    [warning] = gateway_warnings(Config(gateway=LOCAL), "[::]:8080")
    assert "[::]:8080" in warning.found


@pytest.mark.parametrize(
    ("harness", "words"),
    [
        ("llama", '; did you mean "llamacpp"?'),
        ("vllm", "; only a node that has it can load it"),
    ],
)
def test_a_harness_that_only_foreign_nodes_can_have_is_warned_about(
    harness: str, words: str
) -> None:
    config = Config(gateway=LOCAL, models=(Profile("m"), Profile("n", harness=harness)))
    [warning] = gateway_warnings(config)
    assert warning.key == ("models", 1, "harness")
    assert (
        warning.found == f'"{harness}" is not a harness of cortexd\'s own neuron (llamacpp){words}'
    )


@pytest.mark.parametrize("listen", ["0.0.0.0:13131", ":13131", "[::]:1", "192.168.1.5:1", "gpu:1"])
def test_neuron_beyond_loopback_without_token_is_warned_about(listen: str) -> None:
    [warning] = neuron_warnings(neuron.Config(neuron.Agent(listen=listen)))
    assert warning.key == ("neuron", "listen")
    assert f"anyone who can reach {listen} can load" in warning.found
    assert "set [neuron] token_file" in warning.found
    assert not list(neuron_warnings(neuron.Config(neuron.Agent(listen=listen, token_file="t"))))


@pytest.mark.parametrize("listen", ["127.0.0.1:13131", "127.3.2.1:1", "[::1]:1", "localhost:1"])
def test_neuron_on_loopback_is_not_warned_about(listen: str) -> None:
    assert not list(neuron_warnings(neuron.Config(neuron.Agent(listen=listen))))


def test_an_alias_of_a_model_that_the_catalogue_does_not_list_is_warned_of() -> None:
    models = (Profile("Qwen/Qwen3-8B"),)
    aliases = {"good": "Qwen/Qwen3-8B", "typo": "Qwen/Qwen3-8b", "own": "somewhere"}
    typo, own = alias_warnings(Config(gateway=LOCAL, models=models, aliases=aliases))
    assert typo.key == ("aliases", "typo")
    assert 'did you mean "Qwen/Qwen3-8B"?' in typo.found
    assert own.key == ("aliases", "own")
    assert "unless a node has the model by itself" in own.found
