"""A neuron that does what a test tells it to, over real sockets: for what a real one can't be
asked for. It speaks the wire, records what it was sent, and answers inference itself."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from cortexd.wire.neuron import LOADED, UNLOADED

GPU = {"index": 0, "name": "Fake GPU", "vram_total_mb": 24000}


class FakeNeuron:
    """models: id → status, or a whole /models entry. Loads wait until `release` is set."""

    def __init__(
        self,
        models: dict[str, Any] | None = None,
        *,
        devices: list[dict[str, Any]] | None = None,
        discovery: dict[str, Any] | None = None,
        host: str = "127.0.0.1",
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.models = dict(models or {})
        self.discovery = {"devices": [GPU] if devices is None else devices} | (discovery or {})
        self.health: dict[str, Any] = {}
        self.raw: dict[str, bytes] = {}  # path → what is answered there instead
        self.started = time.monotonic()
        self.host = host
        self.token = token
        self.tls = tls
        self.port = 0
        self.calls: list[tuple[str, str, Any]] = []
        self.inference: list[dict[str, Any]] = []
        self.inference_bodies: list[bytes] = []
        self.inference_headers: list[Mapping[str, str]] = []
        self.unreachable = False
        self.answer_polls = asyncio.Event()
        self.answer_polls.set()
        self.release = asyncio.Event()
        self.release.set()
        self.load_answer: Callable[[dict[str, Any]], Awaitable[web.Response]] = self._load
        self.unload_answer: Callable[[dict[str, Any]], web.Response] = self._unload
        self.endpoint_answer: Callable[[str], web.Response] = self._endpoint
        self.infer: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = (
            self._infer
        )

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def called(self, method: str, path: str) -> list[Any]:
        """The bodies of the calls of that kind."""
        return [body for verb, target, body in self.calls if (verb, target) == (method, path)]

    @asynccontextmanager
    async def running(self):
        app = web.Application(handler_args={"handler_cancellation": True}, client_max_size=1 << 30)
        app.router.add_route("*", r"/{path:[\s\S]*}", self._handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, self.host, self.port, backlog=1024, ssl_context=self.tls)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            self.release.set()
            self.answer_polls.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path
        raw = await request.read()
        body = None
        if raw and request.content_type != "multipart/form-data":  # a form is kept, not understood
            body = json.loads(raw.decode(errors="replace"))
        self.calls.append((request.method, path, body))
        if self.unreachable:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "unauthorized"}, status=401)
        if path in self.raw:
            return web.Response(body=self.raw[path], content_type="application/json")
        if request.method == "POST" and path == "/models/load":
            return await self.load_answer(body)
        if request.method == "POST" and path == "/models/unload":
            return self.unload_answer(body)
        if request.method == "POST" or path.startswith("/v1/"):
            self.inference.append(body or {})
            self.inference_bodies.append(raw)
            self.inference_headers.append(request.headers)
            return await self.infer(request, body or {})
        await self.answer_polls.wait()
        if path == "/discovery":
            return web.json_response(self.discovery)
        if path == "/health":
            return web.json_response({"uptime_secs": time.monotonic() - self.started} | self.health)
        if path == "/models":
            return web.json_response(
                [
                    {"id": model, "status": entry} if isinstance(entry, str) else entry
                    for model, entry in self.models.items()
                ]
            )
        if path.endswith("/endpoint"):
            return self.endpoint_answer(
                request.match_info["path"].split("/", 1)[1][: -len("/endpoint")]
            )
        return web.json_response({"error": "unknown"}, status=404)

    async def _load(self, body: dict[str, Any]) -> web.Response:
        await self.release.wait()
        self.models[body["model_id"].rpartition(":")[2]] = LOADED
        return web.json_response({"status": "loaded"})

    def _unload(self, body: dict[str, Any]) -> web.Response:
        self.models[body["model_id"]] = UNLOADED
        return web.json_response({"status": "unloaded"})

    def _endpoint(self, model: str) -> web.Response:
        if model not in self.models:
            return web.json_response({"error": "no such model"}, status=404)
        scheme = "https" if self.tls else "http"
        return web.json_response({"url": f"{scheme}://localhost:{self.port}"})

    async def _infer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model = body.get("model")
        if self.models.get(model) == UNLOADED:
            self.models[model] = LOADED
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "hello"}
            return web.json_response(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": model,
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": usage,
                }
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for choices, counts in (
            ([{"index": 0, "delta": {"content": "hel"}}], None),
            ([{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}], None),
            ([], usage),
        ):
            event = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": model,
                "choices": choices,
                "usage": counts,
            }
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response
