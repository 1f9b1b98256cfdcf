"""What this host has to offer: its GPUs, or else its CPU and memory as one device.

On a CPU host the memory of the engines is what is used; on GPUs the driver's own figures count,
which only an engine can ask for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cortexd.daemon.tasks import Tasks
from cortexd.neuron.harness import EngineError, Gpu, Harness
from cortexd.wire.neuron import DeviceHealth, DeviceInfo, Discovery

log = logging.getLogger(__name__)

_STALE: Final = 5.0  # seconds for which a GPU's figures are shown before they are asked for again


class Devices:
    """The devices of this host. Sizes in MiB.

    memory_mb: what models may use in all; None: what there is.
    unavailable: why no engine can run here, once `survey` has found that none can.
    """

    def __init__(self, harnesses: Mapping[str, Harness], memory_mb: int | None = None) -> None:
        self._harnesses = harnesses
        self._memory_mb = memory_mb
        self._gpus: Sequence[Gpu] = ()
        self._asked = time.monotonic()
        self._tasks = Tasks()
        self._facts = Discovery(devices=[])
        self.unavailable: str | None = None

    async def survey(self) -> None:
        """Learn what there is; before anything else is asked."""
        able, complaints = [], []
        for name, harness in self._harnesses.items():
            try:
                gpus = await harness.gpus()
            except EngineError as error:
                complaints.append(str(error))
                continue
            able.append(name)
            self._gpus = self._gpus or gpus
        if not able:
            self.unavailable = "; ".join(complaints) or "no engine is installed"
        devices = [
            DeviceInfo(index=gpu.index, name=gpu.name, vram_total_mb=gpu.total_mb)
            for gpu in self._gpus
        ]
        cpu, system = await asyncio.to_thread(_host)
        if not devices:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
            total = memory if self._memory_mb is None else self._memory_mb
            devices = [DeviceInfo(index=0, name=cpu, vram_total_mb=total, kind="cpu")]
        self._facts = Discovery(
            devices=devices,
            hostname=platform.node(),
            os=system,
            kernel=platform.release(),
            harnesses=able,
            cuda_unavailable_reason=self.unavailable,
        )

    async def close(self) -> None:
        """Stop asking."""
        await self._tasks.close()

    @property
    def discovery(self) -> Discovery:
        """What GET /discovery answers."""
        return self._facts

    @property
    def are_gpus(self) -> bool:
        """Whether models live in memory that is not this host's own."""
        return bool(self._gpus)

    @property
    def total_mb(self) -> int:
        """MiB that models may use in all."""
        total = sum(int(device.vram_total_mb) for device in self._facts.devices)
        return total if self._memory_mb is None else min(total, self._memory_mb)

    def unknown(self, indices: Collection[int]) -> list[int]:
        """Which of these are no devices of this host."""
        return sorted(set(indices) - {device.index for device in self._facts.devices})

    def free_mb(self, used: int, promised: int, indices: Collection[int] = ()) -> int:
        """MiB that one more model may take, on these devices or on all.

        used: what the engines take in all; promised: the part of it that engines which are
        still loading will take, and the driver does not know of yet.
        """
        free = self.total_mb - used
        if self._gpus:
            chosen = [gpu for gpu in self._gpus if not indices or gpu.index in indices]
            free = min(free, sum(gpu.free_mb for gpu in chosen) - promised)
        return max(0, free)

    def gauges(self, used: int) -> list[DeviceHealth]:
        """The devices of GET /health; asks for newer figures when these are old."""
        if not self._gpus:
            return [DeviceHealth(0, vram_used_mb=used, vram_free_mb=self.free_mb(used, 0))]
        if time.monotonic() - self._asked > _STALE and not self._tasks:
            self._tasks.spawn("gpu figures", self.refresh())
        return [
            DeviceHealth(
                gpu.index, vram_used_mb=gpu.total_mb - gpu.free_mb, vram_free_mb=gpu.free_mb
            )
            for gpu in self._gpus
        ]

    async def refresh(self) -> None:
        """Ask for the GPUs' figures of this moment; on a CPU host there is nothing to ask."""
        if not self._gpus:
            return
        for name in self._facts.harnesses or ():
            try:
                gpus = await self._harnesses[name].gpus()
            except EngineError as error:
                log.warning("no new figures of the devices: %s", error)
                continue
            if gpus:
                self._gpus = gpus
                break
        self._asked = time.monotonic()


def _host() -> tuple[str, str]:
    """The names of the CPU and of the operating system. Reads files."""
    cpu = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
                break
    system = platform.system()
    with suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    return cpu, system
