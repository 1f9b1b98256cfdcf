"""`cortexd load`: have a model resident, and see how it gets there."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote

from cortexd.cli import operators
from cortexd.cli.progress_line import CLEAR, ProgressBar
from cortexd.cli.screen import Screen, plain

if TYPE_CHECKING:
    import aiohttp

REDRAW = 0.2  # seconds
STEP = 0.1  # of a load, for which a line is worth it where lines can't be redrawn


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "load",
        help="load a model, and see how far it is",
        description="Have a model loaded, on one node or where the gateway puts it, and wait until "
        "it is. The load goes on when this ends. Exit status 1 when it was refused.",
        epilog="example: cortexd load Qwen/Qwen3-8B --node beast",
    )
    operators.add_model_argument(parser)
    operators.add_node_option(parser)
    operators.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when it is there."""

    async def ask(gateway: aiohttp.ClientSession) -> operators.Answer:
        progress = Progress(sys.stderr, await _concrete(gateway, args.model))
        async with _showing(gateway, progress):
            return await operators.post(
                gateway, "models", args.model, "load", body={"node": args.node}
            )

    def said(answer: dict[str, Any]) -> str:
        took = f" in {answer['seconds']:.1f} s" if answer["seconds"] >= 0.05 else " already"
        return f"loaded {args.model} on {answer['node']}{took}"

    return operators.run(args, ask, said)


class Progress:
    """How far the load of one model is: a line that is redrawn on a terminal, else a line a step.

    Never writes what a terminal would take for a command.
    """

    def __init__(self, out: TextIO, model: str) -> None:
        self._out = out
        self._model = model
        self._redraws = out.isatty()
        self._began = time.monotonic()
        self._node: str | None = None
        self._stage: str | None = None
        self._fraction: float | None = None
        self._bar = ProgressBar(Screen.of(out))
        self._shown: tuple[str | None, float] = (None, 0.0)
        self._failed: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        """One event of the gateway's."""
        if event.get("model") != self._model:
            return
        kind, node = event["event"], event.get("node")
        if kind == "load_started":
            if self._failed is not None:  # the next candidate: the last words are not the end
                self._print(self._failed)
            self._node, self._stage, self._fraction = node, None, None
            self._bar.reset()
            self._print(f"loading {self._model} on {node}", keep=not self._redraws)
        elif kind == "load_progress":
            if event.get("stage") != self._stage:  # each stage has its own progress
                self._bar.reset()
            self._node, self._stage = node, event.get("stage")
            self._fraction = event.get("fraction")
            step = (self._stage, (self._fraction or 0.0) // STEP)
            if not self._redraws and step != self._shown:
                self._print(self.line())
            self._shown = step
        elif kind == "load_failed":
            self._failed = f"{node} says: {event.get('message')}"
        self.draw()

    def line(self) -> str:
        """What is known, in one line."""
        seconds = f"{time.monotonic() - self._began:.1f} s"
        parts = [self._stage or "loading", f"on {self._node}" if self._node else "", seconds]
        return self._bar.line(self._fraction, "  ".join(part for part in parts if part))

    def draw(self) -> None:
        """Draw the line anew, where that can be done."""
        if self._redraws:
            self._out.write(f"{CLEAR}{plain(self.line())}")
            self._out.flush()

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._redraws:
            self._out.write(CLEAR)
            self._out.flush()

    def _print(self, text: str, *, keep: bool = True) -> None:
        if keep:
            self.clear()
            print(plain(text), file=self._out, flush=True)


async def _concrete(gateway: aiohttp.ClientSession, model: str) -> str:
    """What an alias means: events name the model itself."""
    from yarl import URL

    async with gateway.get(URL(f"/v1/models/{quote(model, safe='')}", encoded=True)) as answer:
        try:
            card = json.loads(await answer.read())
        except ValueError:
            return model
        found = card.get("alias_of", model) if isinstance(card, dict) else model
        return str(found)


@asynccontextmanager
async def _showing(gateway: aiohttp.ClientSession, progress: Progress) -> AsyncIterator[None]:
    """Show progress while the block runs. It is joined before: nothing is missed."""
    import aiohttp

    from cortexd.daemon.tasks import Tasks

    async def follow() -> None:
        with suppress(aiohttp.ClientError):  # what became of the load, its own answer says
            async for line in events.content:
                if line.startswith(b"data: "):
                    progress.take(json.loads(line[6:]))

    async def redraw() -> None:
        while True:
            progress.draw()
            await asyncio.sleep(REDRAW)

    tasks = Tasks()
    async with gateway.get("/api/events") as events:
        if events.content_type == "text/event-stream":
            tasks.spawn("events", follow())
            tasks.spawn("redraw", redraw())
        try:
            yield
        finally:
            await tasks.close()
            progress.clear()
