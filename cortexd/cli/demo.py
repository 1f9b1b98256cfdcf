"""`cortexd demo`: a gateway and two neurons on this machine, and a real model that answers."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cortexd.cli.progress_line import CLEAR, ProgressBar, run_quietly
from cortexd.cli.screen import Screen
from cortexd.daemon.tasks import Tasks

if TYPE_CHECKING:
    import aiohttp

HOST = "127.0.0.1"
READY_WITHIN = 60.0  # seconds for three processes to start on a slow machine

SLOW_DISK = 12  # MiB per second: some seconds for the sample model

COLD = "smollm2-135m"
LAZY = "smollm2-135m-long"
QUESTION = "Name three colours."


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "demo",
        help="see it work on this machine, with a real model",
        description=(
            "Start a gateway and two neurons on loopback with small real models from PyPI, ask "
            "one of them a question, and keep serving until Ctrl-C."
        ),
        epilog="example: cortexd demo --once --port 8090",
    )
    parser.add_argument("--once", action="store_true", help="leave after the answers")
    parser.add_argument(
        "--port",
        type=int,
        default=8080,
        help="the gateway's; operators have the next one (default: 8080)",
    )
    parser.add_argument(
        "--neuron-ports",
        type=int,
        nargs=2,
        default=[13131, 13132],
        metavar="PORT",
        help="the two neurons' (default: 13131 13132)",
    )
    parser.add_argument(
        "--slow-disk",
        action="store_true",
        help="load at 12 MiB/s, to see what a caller hears meanwhile",
    )
    parser.add_argument(
        "--models",
        choices=["default", "all"],
        default="default",
        help="all adds gemma3-270m and an embedding model (350 MB more to download)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it; 1 when something is in the way, with what to do about it."""
    from cortexd.cli import samples
    from cortexd.cli.processes import ProcessDied

    taken = [
        port for port in (args.port, _admin_port(args), *args.neuron_ports) if not _is_free(port)
    ]
    if taken:
        print(
            f"Port {taken[0]} is in use. Choose others, for example:\n"
            f"  cortexd demo --port {args.port + 10} "
            f"--neuron-ports {args.neuron_ports[0] + 10} {args.neuron_ports[1] + 10}",
            file=sys.stderr,
        )
        return 1
    keys = ["smollm2-135m"]
    if args.models == "all":
        keys += ["gemma3-270m", "minilm-l6-v2"]
    # A SIGTERM ends it as tidily as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if missing := samples.missing(keys):
            samples.install(missing, run=_run_pip)
        with tempfile.TemporaryDirectory(prefix="cortexd-demo-") as place:
            asyncio.run(_show(args, Path(place), keys))
    except (samples.SampleError, ProcessDied, TimeoutError) as error:
        print(f"The demo can't go on: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("\nStopped; nothing is left running.")
    return 0


def _run_pip(command: list[str]) -> int:
    names = [found[1] for each in command if (found := re.match(r"([\w-]+)[<>=]", each))]
    return run_quietly(command, f"Installing {', '.join(names)}")


async def _show(args: argparse.Namespace, place: Path, keys: list[str]) -> None:
    import aiohttp

    from cortexd.cli import samples
    from cortexd.cli.processes import Processes

    models = place / "models"
    models.mkdir()
    files = {key: samples.materialise(key, models) for key in keys}
    _write_configuration(args, place, files)
    processes = Processes(place)
    base = f"http://{HOST}:{args.port}"
    try:
        _say(f"Starting two neurons and the gateway on {base}")
        for name in ("north", "south"):
            processes.start(name, "neuron", "--config", str(place / f"{name}.toml"))
        processes.start("gateway", "serve", "--config", str(place / "cortex.toml"))
        async with aiohttp.ClientSession(base) as session:
            await _wait_ready(session, processes)
            _say("")
            await _ask(session, COLD, "No node has this model yet: one of them loads it.")
            await _ask(session, LAZY, "A node knows this one unloaded: it wakes up by itself.")
            await _ask(session, COLD, "And this one is still loaded.")
            if "gemma3-270m" in files:
                await _complete(session, "gemma3-270m")
            if "minilm-l6-v2" in files:
                await _embed(session, "minilm-l6-v2")
        if not args.once:
            _say(_next_commands(base, f"http://{HOST}:{_admin_port(args)}"))
            while True:
                processes.check()
                await asyncio.sleep(0.5)
    finally:
        await processes.stop()


def _write_configuration(args: argparse.Namespace, place: Path, files: dict[str, Path]) -> None:
    import tomlkit

    disk: dict[str, Any] = {"read_mb_s": SLOW_DISK} if args.slow_disk else {}

    def neuron(port: int, models: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "neuron": {"listen": f"{HOST}:{port}"},
            "paths": {"models": [str(place / "models")], "logs": str(place)} | disk,
            "models": models,
        }

    loading: dict[str, Any] = {"loading": {"keepalive": "1s"}} if args.slow_disk else {}
    known: list[dict[str, Any]] = [
        {"id": LAZY, "path": str(files["smollm2-135m"]), "context": 8192}
    ]
    catalogue: list[dict[str, Any]] = [{"id": COLD, "limit": {"context": 4096}}]
    if "gemma3-270m" in files:
        catalogue.append({"id": "gemma3-270m", "pinned_on": ["south"]})
    if "minilm-l6-v2" in files:
        path = str(files["minilm-l6-v2"])
        known.append(
            {"id": "minilm-l6-v2", "path": path, "context": 512, "args": {"embedding": True}}
        )
    ports = dict(zip(("north", "south"), args.neuron_ports, strict=True))
    written = {
        "north": neuron(ports["north"], []),
        "south": neuron(ports["south"], known),
        "cortex": {
            "gateway": {
                "listen": f"{HOST}:{args.port}",
                "admin_listen": f"{HOST}:{_admin_port(args)}",
                "state_dir": "state",
            },
            "neurons": [
                {"name": name, "endpoint": f"http://{HOST}:{port}"} for name, port in ports.items()
            ],
            "models": catalogue,
            "aliases": {"small": COLD},
            **loading,
        },
    }
    for name, content in written.items():
        (place / f"{name}.toml").write_text(tomlkit.dumps(content))


async def _wait_ready(session: aiohttp.ClientSession, processes: Any) -> None:
    """Until the gateway sees both neurons; raises ProcessDied or TimeoutError."""
    import aiohttp

    try:
        async with asyncio.timeout(READY_WITHIN):
            while True:
                processes.check()
                try:
                    async with session.get("/health") as answer:
                        if (await answer.json())["status"] == "ok":
                            return
                except aiohttp.ClientError:
                    pass  # not listening yet
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"the gateway was not ready within {READY_WITHIN:g} s") from None


async def _ask(session: aiohttp.ClientSession, model: str, why: str) -> None:
    import msgspec

    _say(f"{_bold(model)}: {QUESTION}  ({why})")
    body = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 64,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    clock = asyncio.get_running_loop().time
    began, first = clock(), 0.0
    usage: dict[str, int] = {}
    bar = ProgressBar(Screen.of(sys.stdout))
    async with _waiting() as over, session.post("/v1/chat/completions", json=body) as answer:
        await _expect_200(answer)
        route = answer.headers["x-cortex-route"]
        # A head that goes out before the load is over can't name the node yet.
        node = answer.headers.get("x-cortex-node")
        async for line in answer.content:
            if line.startswith(b": "):
                over()
                _show_progress(bar, line[2:].decode().strip())
            if not line.startswith(b"data: {"):
                continue
            event = msgspec.json.decode(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    if not first:
                        first = clock() - began
                        over()
                        _clear_line()
                    print(text, end="", flush=True)
    where = f" on node {node}" if node else ""
    _say(
        f"\n  route {_bold(route)}{where}, first token after {first:.2f} s, "
        f"{usage.get('prompt_tokens')} + {usage.get('completion_tokens')} tokens\n"
    )


def _show_progress(bar: ProgressBar, text: str) -> None:
    """Show a keep-alive of the gateway: as a bar on a terminal, else as a line."""
    if not sys.stdout.isatty():
        print(f"  : {text}", flush=True)
        return
    found = re.fullmatch(r"(.*?) +(\d+)%", text)
    line = bar.line(int(found[2]) / 100, found[1]) if found else bar.line(None, text)
    print(f"{CLEAR}{line}", end="", flush=True)


def _clear_line() -> None:
    if sys.stdout.isatty():
        print(CLEAR, end="", flush=True)


async def _complete(session: aiohttp.ClientSession, model: str) -> None:
    prompt = "The capital of France is"
    _say(f"{_bold(model)}: {prompt} …")
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
    async with _waiting(), session.post("/v1/completions", json=body) as answer:
        await _expect_200(answer)
        text = (await answer.json())["choices"][0]["text"]
        route, node = answer.headers["x-cortex-route"], answer.headers["x-cortex-node"]
    _say(f"{text.strip()}\n  route {_bold(route)} on node {node}\n")


async def _embed(session: aiohttp.ClientSession, model: str) -> None:
    texts = ["a red apple", "a crimson fruit", "the stock exchange"]
    _say(f"{_bold(model)}: how near are {', '.join(map(repr, texts))}?")
    async with (
        _waiting(),
        session.post("/v1/embeddings", json={"model": model, "input": texts}) as answer,
    ):
        await _expect_200(answer)
        vectors = [entry["embedding"] for entry in (await answer.json())["data"]]
        route, node = answer.headers["x-cortex-route"], answer.headers["x-cortex-node"]
    near, far = _cosine(vectors[0], vectors[1]), _cosine(vectors[0], vectors[2])
    _say(f"{near:.2f} and {far:.2f}\n  route {_bold(route)} on node {node}\n")


def _cosine(one: list[float], other: list[float]) -> float:
    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    return float(dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5)


async def _expect_200(answer: aiohttp.ClientResponse) -> None:
    from cortexd.cli.processes import ProcessDied

    if answer.status != 200:
        raise ProcessDied(f"the gateway answered {answer.status}: {(await answer.text()).strip()}")


@asynccontextmanager
async def _waiting() -> AsyncIterator[Callable[[], None]]:
    """Show on a terminal that time passes, until `over` is called or the block ends."""

    async def count() -> None:
        began = asyncio.get_running_loop().time()
        while True:
            print(f"\r  … {asyncio.get_running_loop().time() - began:.1f} s", end="", flush=True)
            await asyncio.sleep(0.1)

    tasks = Tasks()
    counting = tasks.spawn("progress", count()) if sys.stdout.isatty() else None

    def over() -> None:
        nonlocal counting
        if counting is not None:
            counting.cancel()
            counting = None
            _clear_line()

    try:
        yield over
    finally:
        over()
        await tasks.close()


def _admin_port(args: argparse.Namespace) -> int:
    """The operators' listener: the first port above the gateway's that no neuron takes."""
    port = int(args.port) + 1
    while port in args.neuron_ports:
        port += 1
    return port


def _next_commands(base: str, admin: str) -> str:
    body = (
        f'{{"model":"{COLD}","stream":true,"stream_options":{{"include_usage":true}},'
        f'"messages":[{{"role":"user","content":"{QUESTION}"}}]}}'
    )
    return f"""It goes on serving until Ctrl-C. In another terminal:

  curl -N {base}/v1/chat/completions -d '{body}'
  curl -s {base}/v1/models
  curl -s {base}/metrics | grep -E 'cold_starts|tokens_total'
  curl -s {base}/v1/chat/completions -d '{{"model":"nobody","messages":[]}}'
  {sys.executable} -m cortexd status --url {admin} --watch
  {sys.executable} -m cortexd explain {COLD} --url {admin}
  {sys.executable} -m cortexd unload {COLD} --url {admin}
  {sys.executable} -m cortexd load {COLD} --url {admin}

or with any OpenAI client: base_url="{base}/v1", api_key="none", model="{COLD}" (or "small")."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _bold(text: str) -> str:
    return (
        f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
    )


def _say(text: str) -> None:
    print(text, flush=True)
