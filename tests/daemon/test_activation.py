from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cortexd.daemon.activation import BadSocket, inherited


class Handed:
    """Descriptors as a manager hands them over, from `first` on."""

    def __init__(self, stack: ExitStack) -> None:
        self.first = 700
        self.environ: dict[str, str] = {}
        self._stack = stack

    def over(self, *sockets: socket.socket, names: str = "", pid: int | None = None) -> None:
        for number, sock in enumerate(sockets, self.first):
            os.dup2(sock.fileno(), number)
            self._stack.callback(sock.close)
        self.environ |= {
            "LISTEN_PID": str(os.getpid() if pid is None else pid),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": names,
        }

    def taken(self) -> dict[str, list[socket.socket]]:
        found = inherited(self.environ, first=self.first)
        for sockets in found.values():
            for sock in sockets:
                self._stack.callback(sock.close)
        return found


@pytest.fixture
def handed() -> Iterator[Handed]:
    with ExitStack() as stack:
        yield Handed(stack)


def test_sockets_are_taken_by_name_and_not_left_to_children(handed: Handed) -> None:
    one, two, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
    handed.over(one, two, other, names="cortexd.socket:cortexd.socket:admin")
    found = handed.taken()
    assert {name: len(sockets) for name, sockets in found.items()} == {
        "cortexd.socket": 2,
        "admin": 1,
    }
    first = found["cortexd.socket"][0]
    assert first.getsockname() == one.getsockname()
    assert not first.getblocking()
    assert not os.get_inheritable(first.fileno())
    assert handed.environ == {}
    assert inherited(handed.environ, first=handed.first) == {}


def test_sockets_without_names_are_sockets(handed: Handed) -> None:
    handed.over(socket.create_server(("127.0.0.1", 0)))
    assert list(handed.taken()) == [""]


def test_what_is_meant_for_another_process_is_left_alone(handed: Handed) -> None:
    handed.over(socket.create_server(("127.0.0.1", 0)), pid=1)
    assert handed.taken() == {}
    os.close(handed.first)


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_PID": str(os.getpid())}, {"LISTEN_PID": "x", "LISTEN_FDS": "1"}]
)
def test_without_a_manager_there_is_nothing(environ: dict[str, str]) -> None:
    assert inherited(dict(environ)) == {}


def test_what_can_not_be_listened_on_says_what_to_change(handed: Handed) -> None:
    handed.over(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), names="cortexd.socket")
    with pytest.raises(BadSocket, match=r"cortexd\.socket.*ListenStream="):
        handed.taken()


def test_a_descriptor_that_is_no_socket_is_named(handed: Handed) -> None:
    with Path(os.devnull).open() as file:
        os.dup2(file.fileno(), handed.first)
    handed.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    try:
        with pytest.raises(BadSocket, match="is no socket"):
            handed.taken()
    finally:
        os.close(handed.first)
