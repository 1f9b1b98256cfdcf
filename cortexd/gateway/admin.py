"""POST /api/models/…, /api/nodes/… and /api/reload: what changes something, for operators only, on
a listener of its own.

A browser on the operator's machine can reach that listener too. It may not use it: a page of
another origin can't send JSON without asking first, and one whose name was made to point here says
so in its Host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cortexd import errors
from cortexd.config.current import Current
from cortexd.control.operator import Operator
from cortexd.errors import Refusal
from cortexd.gateway.face import Methods, as_json, unknown_route
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.reload import Reload
from cortexd.proxy.bodies import Bodies
from cortexd.wire.openai import without_bom

MODELS: Final = "/api/models/"
NODES: Final = "/api/nodes/"
MAX_BODY: Final = 64 << 10  # bytes

T = TypeVar("T")


class LoadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a load may be asked with."""

    node: str | None = None


class UnloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an unload may be asked with. `force`: though it is at work."""

    node: str | None = None
    force: bool = False


class EmptyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node is drained, and a file reloaded, without further ado."""


class LoadAnswer(msgspec.Struct, frozen=True):
    """It is resident. `seconds`: that it took."""

    status: str
    node: str
    seconds: float


class UnloadAnswer(msgspec.Struct, frozen=True):
    """It is gone. `nodes`: that had it."""

    status: str
    nodes: list[str]


class NodeAnswer(msgspec.Struct, frozen=True):
    """State of a node after a drain or undrain, and the requests that still run there.

    note: why a restart of the gateway would forget it; absent: it would not.
    """

    node: str
    draining: bool
    in_flight: int
    note: str | msgspec.UnsetType = msgspec.UNSET


_decode_load: Final = msgspec.json.Decoder(LoadBody)
_decode_unload: Final = msgspec.json.Decoder(UnloadBody)
_decode_nothing: Final = msgspec.json.Decoder(EmptyBody)

Act = Callable[[Inbound, str], Awaitable[web.Response]]


class Admin:
    """The operators' face. paths, and routes: prefix → what may be done below it."""

    def __init__(self, operator: Operator, reload: Reload, current: Current) -> None:
        self._operator = operator
        self._reload = reload
        self._current = current
        self._bodies = Bodies(MAX_BODY, 16 * MAX_BODY, table="")
        self._acts: dict[tuple[str, str], Act] = {
            (MODELS, "load"): self._load,
            (MODELS, "unload"): self._unload,
            (NODES, "drain"): self._drain,
            (NODES, "undrain"): self._undrain,
        }
        self.paths: dict[str, Methods] = {"/api/reload": {"POST": self._do_reload}}
        self.routes: Mapping[str, Methods] = {
            prefix: {"POST": partial(self._operate, prefix)} for prefix in (MODELS, NODES)
        }

    async def _operate(self, prefix: str, inbound: Inbound) -> web.StreamResponse:
        """POST {prefix}{name}/{verb}; names may hold slashes. Raises Refusal."""
        name, _, verb = inbound.path.removeprefix(prefix).rpartition("/")
        act = self._acts.get((prefix, verb))
        if not name or act is None:
            raise unknown_route(inbound)
        self._check(inbound)
        return await act(inbound, name)

    async def _do_reload(self, inbound: Inbound) -> web.StreamResponse:
        self._check(inbound)
        await self._read(inbound, _decode_nothing, EmptyBody())
        return as_json(inbound, await self._reload.reload())

    def _check(self, inbound: Inbound) -> None:
        """Raise Refusal if a page could have sent it without asking first; see `browser_access`."""
        if inbound.request.content_type != "application/json":
            raise Refusal(
                errors.UNSUPPORTED_MEDIA_TYPE, "This needs `Content-Type: application/json`."
            )

    async def _load(self, inbound: Inbound, model: str) -> web.Response:
        wanted = await self._read(inbound, _decode_load, LoadBody())
        loaded = await self._operator.load(model, wanted.node)
        return as_json(inbound, LoadAnswer("loaded", loaded.node, loaded.seconds))

    async def _unload(self, inbound: Inbound, model: str) -> web.Response:
        wanted = await self._read(inbound, _decode_unload, UnloadBody())
        nodes = await self._operator.unload(model, wanted.node, force=wanted.force)
        return as_json(inbound, UnloadAnswer("unloaded", nodes))

    async def _drain(self, inbound: Inbound, node: str) -> web.Response:
        await self._read(inbound, _decode_nothing, EmptyBody())
        in_flight = self._operator.drain(node)
        return as_json(inbound, NodeAnswer(node, True, in_flight, await self._note()))

    async def _undrain(self, inbound: Inbound, node: str) -> web.Response:
        await self._read(inbound, _decode_nothing, EmptyBody())
        in_flight = self._operator.undrain(node)
        return as_json(inbound, NodeAnswer(node, False, in_flight, await self._note()))

    async def _note(self) -> str | msgspec.UnsetType:
        problem = await self._operator.check_state()
        if problem is None:
            return msgspec.UNSET
        return f"A restart of the gateway forgets this: {problem}."

    async def _read(self, inbound: Inbound, decoder: msgspec.json.Decoder[T], nothing: T) -> T:
        hold = self._bodies.hold()
        try:
            body = await hold.read(inbound.request)
        finally:
            hold.release()
        if not body:
            return nothing
        try:
            return decoder.decode(without_bom(body))
        except msgspec.ValidationError as error:
            raise Refusal(errors.INVALID_VALUE, f"The body is not as it should be: {error}.") from (
                error
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal(errors.INVALID_JSON, "The request body is not valid JSON.") from error
