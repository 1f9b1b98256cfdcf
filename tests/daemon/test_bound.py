from __future__ import annotations

import socket

import pytest

from cortexd.daemon import bound
from cortexd.daemon.bound import BoundAddress, is_local


def outward_ip() -> str | None:
    """Return an address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(sock.getsockname()[0])


@pytest.mark.parametrize(
    ("listening", "ip", "arrives"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "127.9.9.9", True),
        ("0.0.0.0", "::ffff:127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("0.0.0.0", "192.0.2.7", False),
        ("0.0.0.0", "beast", False),
        ("::1", "::1", True),
        ("::1", "::", True),
        ("::", "::1", True),
        ("::", "fe80::1%nowhere", False),
        ("::", "2001:db8::7", False),
    ],
)
def test_address_arrives_only_where_the_kernel_would_take_it(
    listening: str, ip: str, arrives: bool
) -> None:
    where = BoundAddress(listening, 8080, is_dual_stack=False)
    assert where.accepts(ip, 8080) is arrives
    assert not where.accepts(ip, 8081)


def test_dual_stack_socket_takes_both_families() -> None:
    assert BoundAddress("::", 80, is_dual_stack=True).accepts("127.0.0.1", 80)
    assert not BoundAddress("::", 80, is_dual_stack=False).accepts("127.0.0.1", 80)


def test_address_of_an_interface_is_local() -> None:
    own = outward_ip() or "127.0.0.1"
    assert is_local(own)
    assert BoundAddress("0.0.0.0", 80, is_dual_stack=False).accepts(own, 80)


def test_kernel_that_binds_to_any_address_does_not_make_every_address_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bound, "_can_bind", lambda ip: True)  # net.ipv4.ip_nonlocal_bind = 1
    assert not is_local("192.0.2.7")
    assert is_local(outward_ip() or "127.0.0.1")


def test_bound_address_is_read_from_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert BoundAddress.of(sock) == ("127.0.0.1", sock.getsockname()[1], False)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        assert BoundAddress.of(sock) == ("::", sock.getsockname()[1], True)
    with socket.socket(socket.AF_UNIX) as sock:
        assert BoundAddress.of(sock) is None
