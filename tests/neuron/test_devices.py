"""What a host says of itself."""

from __future__ import annotations

import os

import pytest

from cortexd.neuron.devices import Devices
from cortexd.neuron.harness import EngineError, Gpu
from tests.neuron.engines import FakeHarness
from tests.waiting import until


async def surveyed(harness: FakeHarness, memory_mb: int | None = None) -> Devices:
    devices = Devices({"fake": harness}, memory_mb)
    await devices.survey()
    return devices


async def test_a_cpu_host_is_one_device_with_the_machines_memory() -> None:
    devices = await surveyed(FakeHarness())
    (cpu,) = devices.discovery.devices
    assert (cpu.index, cpu.kind) == (0, "cpu")
    assert cpu.name
    assert cpu.vram_total_mb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert devices.discovery.harnesses == ["fake"]
    assert devices.discovery.cuda_unavailable_reason is None
    assert devices.discovery.hostname
    assert devices.discovery.os
    assert devices.discovery.kernel


async def test_memory_mb_is_what_models_may_use_in_all() -> None:
    devices = await surveyed(FakeHarness(), 1000)
    assert devices.discovery.devices[0].vram_total_mb == 1000
    (gauge,) = devices.gauges(300)
    assert (gauge.vram_used_mb, gauge.vram_free_mb) == (300, 700)
    assert devices.free_mb(1500, 0) == 0
    assert devices.unknown([0]) == []
    assert devices.unknown([2, 0, 1]) == [1, 2]


async def test_gpus_take_the_place_of_the_cpu() -> None:
    devices = await surveyed(FakeHarness(gpus=[Gpu(0, "A", 1000, 900), Gpu(1, "B", 500, 100)]))
    shown = [(each.index, each.name, each.vram_total_mb) for each in devices.discovery.devices]
    assert shown == [(0, "A", 1000), (1, "B", 500)]
    assert devices.discovery.devices[0].kind is None
    gauges = [(each.vram_used_mb, each.vram_free_mb) for each in devices.gauges(0)]
    assert gauges == [(100, 900), (400, 100)]
    assert devices.free_mb(0, 0) == 1000
    assert devices.free_mb(0, 50, [1]) == 50


async def test_on_gpus_memory_mb_is_a_bound_as_well() -> None:
    devices = await surveyed(FakeHarness(gpus=[Gpu(0, "A", 1000, 900)]), 600)
    assert devices.total_mb == 600
    assert devices.free_mb(200, 0) == 400


async def test_old_figures_of_gpus_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = FakeHarness(gpus=[Gpu(0, "A", 1000, 900)])
    devices = await surveyed(harness)
    harness.gpus_answer = [Gpu(0, "A", 1000, 200)]
    assert devices.gauges(0)[0].vram_free_mb == 900
    monkeypatch.setattr("cortexd.neuron.devices._STALE", -1.0)
    await until(lambda: devices.gauges(0)[0].vram_free_mb == 200)
    await devices.close()


async def test_a_driver_that_is_silent_for_once_leaves_the_last_figures(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = FakeHarness(gpus=[Gpu(0, "A", 1000, 900)])
    devices = await surveyed(harness)
    harness.gpus_answer = EngineError("driver asleep")
    await devices.refresh()
    assert devices.gauges(0)[0].vram_free_mb == 900
    assert "driver asleep" in caplog.text


async def test_a_host_without_an_engine_says_why_nothing_can_load() -> None:
    harness = FakeHarness()
    harness.gpus_answer = EngineError("no module named xllamacpp")
    devices = await surveyed(harness)
    assert devices.unavailable == "no module named xllamacpp"
    assert devices.discovery.cuda_unavailable_reason == "no module named xllamacpp"
    assert devices.discovery.harnesses == []
    assert len(devices.discovery.devices) == 1
