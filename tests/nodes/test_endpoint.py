from __future__ import annotations

import pytest

from cortexd.nodes.endpoint import (
    EndpointRefused,
    is_loopback,
    is_own_host,
    may_carry_token,
    port_hint,
    usable_endpoint,
)

NEURON = "http://beast.internal:13131"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "foo.localhost",
        "127.0.0.1",
        "127.9.8.7",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::1%25lo]",
    ],
)
def test_every_spelling_of_loopback_means_the_neurons_own_host(host: str) -> None:
    url = usable_endpoint(f"http://{host}:20001/base/", NEURON, ())
    assert url == "http://beast.internal:20001/base"


@pytest.mark.parametrize(
    ("said", "neuron", "expected"),
    [
        ("http://localhost:13131/", NEURON, "http://beast.internal:13131"),
        ("https://localhost", NEURON, "https://beast.internal"),
        ("http://localhost:1", "http://[fd00::7]:13131", "http://[fd00::7]:1"),
        ("http://beast.internal:9/x//", NEURON, "http://beast.internal:9/x"),
        ("http://BEAST.internal.:9", NEURON, "http://beast.internal.:9"),
        ("http://127.0.0.1:9", "http://127.0.0.2:13131", "http://127.0.0.2:9"),
        ("http://gpu-lb.internal:9", NEURON, "http://gpu-lb.internal:9"),
    ],
)
def test_scheme_port_and_path_are_kept_without_a_trailing_slash(
    said: str, neuron: str, expected: str
) -> None:
    assert usable_endpoint(said, neuron, ["gpu-lb.internal"]) == expected


HTTPS = "https://beast.internal:8443"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("http://localhost:13131", HTTPS),
        ("http://127.0.0.1:20001/engine/", f"{HTTPS}/engine"),
        ("http://[::1]:20001", HTTPS),
        ("http://0.0.0.0", HTTPS),
        ("http://Beast.Internal.:13131", HTTPS),
        ("HTTP://beast.internal", HTTPS),
        ("https://localhost:9443", "https://beast.internal:9443"),
        ("https://beast.internal:9443/x", "https://beast.internal:9443/x"),
        ("https://gpu-lb.internal", "https://gpu-lb.internal"),
    ],
)
def test_node_with_https_is_asked_at_its_configured_origin_instead_of_in_clear(
    said: str, expected: str
) -> None:
    assert usable_endpoint(said, HTTPS, ["gpu-lb.internal"]) == expected


@pytest.mark.parametrize("said", ["http://gpu-lb.internal", "http://GPU-LB.internal.:80/v1"])
def test_clear_text_elsewhere_is_refused_for_a_node_with_https(said: str) -> None:
    with pytest.raises(EndpointRefused, match="in clear text; have it name an https endpoint"):
        usable_endpoint(said, HTTPS, ["gpu-lb.internal"])
    assert usable_endpoint(said, NEURON, ["gpu-lb.internal"])


@pytest.mark.parametrize(
    ("endpoint", "neuron", "has_hint"),
    [
        ("http://beast.internal:20001", NEURON, True),
        ("http://beast.internal", NEURON, True),
        ("http://Beast.Internal:13131", NEURON, False),
        ("https://beast.internal", "https://beast.internal:443", False),
        ("http://gpu-lb.internal:1", NEURON, False),
    ],
)
def test_hint_names_both_ports_when_they_differ_on_the_same_host(
    endpoint: str, neuron: str, has_hint: bool
) -> None:
    hint = port_hint(endpoint, neuron)
    assert bool(hint) is has_hint
    if has_hint:
        assert "port 13131" in hint


@pytest.mark.parametrize(
    ("endpoint", "neuron", "expected"),
    [
        ("https://beast.internal:9", HTTPS, True),
        ("http://beast.internal:8443", HTTPS, False),
        ("http://beast.internal:1", NEURON, True),
        ("https://beast.internal:1", NEURON, True),
        ("https://gpu-lb.internal", HTTPS, False),
    ],
)
def test_token_goes_to_the_nodes_own_host_and_never_from_https_to_http(
    endpoint: str, neuron: str, expected: bool
) -> None:
    assert may_carry_token(endpoint, neuron) is expected


@pytest.mark.parametrize(
    "said",
    [
        "http://169.254.169.254/latest",
        "http://[::ffff:169.254.169.254]/",
        "http://evil.example:80",
        "http://localhost.evil.example",
        "http://user@localhost:1",
        "http://user:secret@beast.internal:1",
        "ftp://localhost:1",
        "file:///etc/passwd",
        "localhost:13131",
        "",
        "http://",
        "http://localhost:99999",
        "http://[::1",
        "http://localhost:1/?next=x",
        "http://localhost:1/#x",
        "http://localhost:1/a b",
        "http://localhost:1/\r\nX: y",
    ],
)
def test_any_other_endpoint_is_refused(said: str) -> None:
    with pytest.raises(EndpointRefused):
        usable_endpoint(said, NEURON, ["gpu-lb.internal"])


def test_a_refused_host_comes_with_the_line_that_would_allow_it() -> None:
    with pytest.raises(EndpointRefused) as refused:
        usable_endpoint("http://other:80", NEURON, ())
    assert '[security] allowed_inference_hosts = ["other"]' in str(refused.value)


@pytest.mark.parametrize("host", ["beast", "10.0.0.1", "128.0.0.1", "::2", "notlocalhost", ""])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_only_the_neurons_own_host_is_its_own() -> None:
    assert is_own_host("http://BEAST.internal.:20001", NEURON)
    assert not is_own_host("http://gpu-lb.internal:13131", NEURON)
