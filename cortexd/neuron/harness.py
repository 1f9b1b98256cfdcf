"""What residency asks of an engine, whichever it is: the Protocols that every harness meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cortexd.config.neuron import LocalModel


@dataclass(frozen=True, slots=True)
class Launch:
    """One model, ready to be run. `devices`: indices it may use; empty: all of them."""

    model: LocalModel
    path: Path
    devices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device with memory of its own, as an engine sees it. Sizes in MiB."""

    index: int
    name: str
    total_mb: int
    free_mb: int


class EngineError(Exception):
    """An engine can't run, or can't run this model; the message carries its own words."""


class FileMissing(EngineError):
    """There is no file of the model to run."""


class Engine(Protocol):
    """A running engine that holds one model."""

    @property
    def url(self) -> str:
        """The base to append `/v1/...` to; known once it is ready."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What a request to it must carry besides the caller's own headers."""

    def memory_mb(self) -> int:
        """MiB of this host's memory that it takes now; 0 once it has ended."""

    async def wait_ready(self) -> None:
        """Return when it answers requests. Raises EngineError when it never will."""

    async def wait_exit(self) -> int:
        """Return its exit code, negative for a signal, when it has ended."""

    async def stop(self) -> None:
        """End it within seconds, whatever it does; nothing of it is left on return."""


class Harness(Protocol):
    """Runs one kind of engine."""

    def capabilities(self, model: LocalModel) -> list[str]:
        """What a model can be asked for: text, embedding, rerank."""

    def estimate_mb(self, launch: Launch) -> int:
        """MiB that it will need. Reads the disk: not for the event loop."""

    async def gpus(self) -> Sequence[Gpu]:
        """The GPUs that its engine can use; none: it runs on the CPU.

        Raises EngineError when the engine can't run here at all.
        """

    async def start(self, launch: Launch) -> Engine:
        """Begin to load a model. Raises EngineError."""
