"""The parent side of the llamacpp harness: one child process per model, watched and ended here.

A child each, because llama.cpp holds the GIL for a whole load, gives no memory back, and may
crash: none of that may happen to the node agent.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec

from cortexd.config.neuron import LocalModel
from cortexd.neuron.harness import EngineError, FileMissing, Gpu, Launch

_CHILD: Final = "cortexd.neuron.harnesses.llamacpp_child"
_GPUS_TIMEOUT: Final = 60.0  # seconds; a driver that wakes up takes some
_STOP_GRACE: Final = 3.0  # seconds from SIGTERM to SIGKILL
_LOG_TAIL: Final = 16 * 1024  # bytes of a log that are searched for the reason of a failure
_ENGINE_ERROR: Final = re.compile(r"^[\d.]+ E (.+)$", re.MULTILINE)
_OUR_ERROR: Final = re.compile(r"^error: (.+)$", re.MULTILINE)
_PART: Final = re.compile(r"-00001-of-(\d{5})\.gguf$")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_decode_gpus = msgspec.json.Decoder(list[Gpu])


class LlamaCpp:
    """Runs GGUF models. `logs`: the directory with one log file per model.

    read_mb_s: MiB per second that a load may read; None: what the disk gives.
    """

    def __init__(self, logs: Path, read_mb_s: int | None = None) -> None:
        self._logs = logs
        self._read_mb_s = read_mb_s
        self._gpus: Sequence[Gpu] = ()

    def capabilities(self, model: LocalModel) -> list[str]:
        """What a model can be asked for, which its settings decide."""
        if model.args.get("pooling_type") in ("rank", 4):
            return ["rerank"]
        return ["embedding" if model.args.get("embedding") else "text"]

    def estimate_mb(self, launch: Launch) -> int:
        """Return the configured `vram_mb`, else the size of the file, in all its parts.

        Raises FileMissing, EngineError.
        """
        files = [launch.path]
        if part := _PART.search(launch.path.name):
            stem = launch.path.name[: part.start()]
            files = list(launch.path.parent.glob(f"{escape(stem)}-*-of-{part[1]}.gguf"))
        try:
            size = max(1, sum(file.stat().st_size for file in files) >> 20)
        except FileNotFoundError as error:
            raise FileMissing(f"{launch.path}: {error.strerror}") from error
        except OSError as error:
            raise EngineError(f"{launch.path}: {error.strerror}") from error
        return size if launch.model.vram_mb is None else launch.model.vram_mb

    async def gpus(self) -> Sequence[Gpu]:
        """Asked of a process that ends at once: a GPU's driver keeps memory in those that ask."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            _CHILD,
            "--devices",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_GPUS_TIMEOUT):
                said, complaint = await process.communicate()
        except TimeoutError as error:
            raise EngineError("llama.cpp does not tell which devices there are") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            # Drivers may greet on stdout; what was asked for is the last line.
            self._gpus = _decode_gpus.decode(said.splitlines()[-1])
        except (IndexError, msgspec.DecodeError):
            raise EngineError(
                f"llama.cpp can't run here: {_reason(complaint.decode(errors='replace'))}"
            ) from None
        return self._gpus

    async def start(self, launch: Launch) -> LlamaCppEngine:
        """Begin to load a model in a child of its own. Raises EngineError."""
        log = self._logs / f"{quote(launch.model.id, safe='')[:200]}.log"
        try:
            log_fd = await asyncio.to_thread(_fresh_log, log)
        except OSError as error:
            raise EngineError(f"its log {log} can't be written: {error.strerror}") from error
        key = secrets.token_urlsafe(32)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                _CHILD,
                str(os.getpid()),
                launch.model.id,  # not read by the child: for the person who runs ps
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_fd,
                start_new_session=True,  # Ctrl-C in a terminal is for the agent, not for engines
            )
        except OSError as error:
            raise EngineError(f"no process could be started: {error.strerror}") from error
        finally:
            os.close(log_fd)
        engine = LlamaCppEngine(process, key, log)
        try:
            await engine.order(self._order(launch, key))
        except BaseException:
            await engine.stop()
            raise
        return engine

    def _order(self, launch: Launch, key: str) -> bytes:
        model = launch.model
        settings: dict[str, Any] = {
            "hostnames": ["127.0.0.1"],
            "port": 0,
            "api_keys": [key],  # the agent's own door is the only one, for local users too
            "n_ctx": model.context * model.parallel,
            "n_parallel": model.parallel,
            "n_gpu_layers": model.gpu_layers,
            "cpuparams.n_threads": len(os.sched_getaffinity(0)),
            "cache_ram_mib": 0,  # 8 GiB by default, which no budget knows of
            "use_jinja": True,
            "ui": False,
        }
        if launch.devices and self._gpus:
            settings["tensor_split"] = [float(gpu.index in launch.devices) for gpu in self._gpus]
        settings |= model.args
        order = {
            "model": str(launch.path),
            "id": model.id,
            "set": settings,
            "read_mb_s": self._read_mb_s,
        }
        return msgspec.json.encode(order) + b"\n"


class LlamaCppEngine:
    """One child process with its server."""

    def __init__(self, process: asyncio.subprocess.Process, key: str, log: Path) -> None:
        self._process = process
        self._log = log
        self._statm: int | None = None
        # An open file of /proc stays that process's own, whoever gets its id later.
        with suppress(OSError):
            self._statm = os.open(f"/proc/{process.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        self.url = ""
        self.headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"}

    def memory_mb(self) -> int:
        """MiB resident, the file's mapped pages among them."""
        if self._statm is None:
            return 0
        try:
            pages = os.pread(self._statm, 100, 0).split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * _PAGE >> 20

    async def order(self, line: bytes) -> None:
        """Tell the child what to run. That it is gone already shows in `wait_ready`."""
        if self._process.stdin is not None:
            with suppress(ConnectionError):
                self._process.stdin.write(line)
                await self._process.stdin.drain()

    async def wait_ready(self) -> None:
        """Return when /health answers 200. Raises EngineError with the words in the log."""
        line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        url = line.decode(errors="replace").strip()
        if not url.startswith("http://"):
            raise EngineError(await self._last_words())
        async with aiohttp.ClientSession() as session:
            while not await _is_healthy(session, url):
                if self._process.returncode is not None:
                    raise EngineError(await self._last_words())
                await asyncio.sleep(0.05)
        self.url = url

    async def wait_exit(self) -> int:
        """Return its exit code, negative for a signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the child. SIGTERM ends it at once, in the middle of a load and of a stream too."""
        process = self._process
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_GRACE):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.communicate()  # to the end of its pipes, which closes them here
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None

    async def _last_words(self) -> str:
        code = await self._process.wait()
        words = _reason(await asyncio.to_thread(_tail, self._log))
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{words} ({end}; log: {self._log})"


async def _is_healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as answer:
            return answer.status == 200
    except (aiohttp.ClientError, OSError):
        return False


def _fresh_log(path: Path) -> int:
    """A new log, the one before it kept as `.1`: the words of a crash outlive the next start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _reason(text: str) -> str:
    """What went wrong, in the words of a log."""
    errors = _ENGINE_ERROR.findall(text) or _OUR_ERROR.findall(text)
    errors = errors or text.strip().splitlines()[-1:]
    return "; ".join(list(dict.fromkeys(errors))[:2]) or "it said nothing"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
