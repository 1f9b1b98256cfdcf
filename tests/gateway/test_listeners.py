"""Listeners that are opened, inherited, moved and given up."""

from __future__ import annotations

import asyncio
import socket

import pytest

from cortexd.config.gateway import Gateway
from cortexd.gateway.listeners import CantListen, Key, Listeners, keyed, spelt
from cortexd.proxy.listen import UNSENT
from cortexd.proxy.server import DoorServer
from tests.functional.raw import connected
from tests.proxy.site import Site
from tests.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
FREE = Gateway(listen="127.0.0.1:0", admin_listen="", metrics_listen="127.0.0.1:0")


def serve(key: Key) -> DoorServer:
    site = Site(None)
    return DoorServer(site.handle, site.refuse, max_body=1, max_connections=10)


async def ended(listeners: Listeners) -> None:
    await listeners.close()
    for listener in listeners.all:
        await listener.stop()
        await listener.finish(0.1)


async def test_what_the_manager_holds_open_is_served_on_and_bounded_like_our_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listeners = Listeners(serve, {"listen": [sock.dup()]})
        await listeners.open(Gateway(listen="192.0.2.1:1", admin_listen=""))
        main = listeners["listen"]
        assert main is not None
        assert listeners.are_inherited("listen")
        assert main.address == sock.getsockname()
        async with connected(main.address) as client:
            await until(lambda: any(door.transport for door in main.server.doors))
            [door] = main.server.doors
            assert door.transport is not None
            accepted = door.transport.get_extra_info("socket")
            bound = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert bound == UNSENT
            assert (await client.ask(GET)).body == b"hello"
        await ended(listeners)
        # It waits for the next process.
        with socket.create_connection(sock.getsockname()):
            pass


async def test_only_what_moved_is_opened_and_nothing_changes_before_it_is_put_in_place() -> None:
    listeners = Listeners(serve, {})
    await listeners.open(FREE)
    main, metrics = listeners["listen"], listeners["metrics_listen"]
    after = Gateway(listen="127.0.0.1:0", admin_listen="127.0.0.1:0", metrics_listen=None)
    opened = await listeners.prepare(FREE, after)
    assert set(opened) == {"admin_listen", "metrics_listen"}
    assert listeners["metrics_listen"] is metrics
    assert listeners["admin_listen"] is None
    listeners.replace(opened)
    assert listeners["listen"] is main
    assert listeners["metrics_listen"] is None
    assert listeners["admin_listen"] is not None
    await until(lambda: len(listeners.all) == 2)
    await ended(listeners)


async def test_what_was_opened_beside_one_that_can_not_be_is_given_up() -> None:
    listeners = Listeners(serve, {})
    await listeners.open(FREE)
    before = listeners.all
    with pytest.raises(CantListen, match="admin_listen"):
        await listeners.prepare(
            FREE, Gateway(listen="localhost:0", admin_listen="192.0.2.1:1", metrics_listen=None)
        )
    assert [listeners["listen"], listeners["metrics_listen"]] == before
    await until(lambda: listeners.all == before)
    await ended(listeners)


async def test_a_client_of_a_listener_that_leaves_is_answered_to_the_end() -> None:
    listeners = Listeners(serve, {})
    await listeners.open(FREE)
    old = listeners["listen"]
    assert old is not None
    async with connected(old.address) as client:
        half, rest = GET[:10], GET[10:]
        await client.send(half)
        await until(lambda: bool(old.server.doors))
        moved = Gateway(listen="localhost:0", admin_listen="", metrics_listen="127.0.0.1:0")
        listeners.replace(await listeners.prepare(FREE, moved))
        await client.send(rest)
        assert (await client.read_answer("GET")).body == b"hello"
    await until(lambda: len(listeners.all) == 2)
    await asyncio.sleep(0)
    await ended(listeners)


def test_names_say_what_a_socket_is_for() -> None:
    a, b, c, d = (socket.socket() for _ in range(4))
    named = {"cortexd.socket": [a], "": [b], "cortexd-admin.socket": [c], "metrics": [d]}
    assert keyed(named) == {"listen": [a, b], "admin_listen": [c], "metrics_listen": [d]}
    for sock in (a, b, c, d):
        sock.close()


def test_an_address_is_spelt_as_the_configuration_would_have_it() -> None:
    assert spelt(("/run/x", 0)) == "unix:/run/x"
    assert spelt(("::1", 80)) == "[::1]:80"
    assert spelt(("127.0.0.1", 80)) == "127.0.0.1:80"
