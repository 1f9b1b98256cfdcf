"""Interim."""

from __future__ import annotations

from typing import Any

from aiohttp import web


class Door(web.RequestHandler):
    __slots__ = ("sink",)

    def __init__(self, *a: Any, **k: Any) -> None:
        super().__init__(*a, **k)
        self.sink: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(65536, 16384)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.sink is not None:
            self.sink.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.sink is not None:
            self.sink.resume()

    def connection_lost(self, exc: Any) -> None:
        if self.sink is not None:
            self.sink.lost()
        super().connection_lost(exc)


class DoorServer(web.Server):
    def __call__(self) -> Door:
        return Door(self, loop=self._loop, **self._kwargs)
