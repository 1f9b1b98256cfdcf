"""`cortexd status`: what is drawn of a fleet, and the command before a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortexd.cli.operators import NoGateway, understood
from cortexd.cli.screen import Screen
from cortexd.cli.status import drawn
from cortexd.config.catalogue import Profile
from cortexd.wire.fleet import Device, Fleet, Hardware, Load, Model, Node, Totals
from tests.cli.commands import cortexd, on_a_terminal, start
from tests.fakes import FakeNeuron
from tests.gateway.fleet import GUARD, running_fleet, until

HEALTH = {
    "devices": [
        {
            "index": 0,
            "vram_used_mb": 12000,
            "vram_free_mb": 12000,
            "utilization_pct": 41,
            "temp_c": 63,
        }
    ]
}

EXAMPLE = Fleet(
    [
        Node(
            "attic",
            "attic:13131",
            "down",
            trouble="connection refused",
            contact_seconds=130.0,
            models=[Model("Qwen/Qwen3-8B", "loaded")],
        ),
        Node(
            "beast",
            "beast:13131",
            "up",
            hardware=Hardware(),
            devices=[
                Device(0, "RTX 5090", None, 32607, 20100, 12507, 41, 63),
                Device(1, "RTX 3060", total_mb=12288, free_mb=12032),
                Device(2, kind="cpu"),
            ],
            models=[
                Model("Qwen/Qwen3-8B", "loaded", [0, 1], 18100, 3, 5, 2, idle_seconds=0.0),
                Model("old", "loaded", unservable="wedged", idle_seconds=4000.0, gated=True),
                Model("later", "unloaded"),
                Model("broken", "failed", error="no such file"),
            ],
        ),
        Node("cave", "cave:13131", "draining", draining=True),
        Node(
            "den",
            "den:13131",
            "up",
            hardware=Hardware(cuda_unavailable_reason="driver mismatch"),
        ),
    ],
    [
        Load("Qwen/Qwen3-32B", "beast", "loading", "weights", 0.42, 4, 31.0),
        Load("new", None, "making room", waiting=1, seconds=3.0),
        Load("theirs", "beast", "loading", seconds=90.0, ours=False),
    ],
    Totals(4, 2, 1, 3, 44895, 20356, 2, 3, 5),
)

SHOWN = """\
2 of 4 nodes up, 1 drained; 3 devices, 19.9 of 43.8 GiB in use
2 models loaded; 3 requests in flight, 5 waiting

NODE   STATE     DEVICE      MEMORY                                 USE   TEMP
attic  down      connection refused; last seen 2 min ago
beast  up        0 RTX 5090  ############--------  19.6 / 31.8 GiB  41 %  63 C
                 1 RTX 3060  --------------------   0.2 / 12.0 GiB
                 2 cpu                                   ? / ? GiB
cave   draining  its devices are not known yet
den    up        can load nothing: driver mismatch

MODEL          NODE   STATUS    MEMORY    ON   IN FLIGHT  REPORTED  IDLE
Qwen/Qwen3-8B  beast  loaded    17.7 GiB  0,1          3       5+2
broken         beast  failed
                      no such file
old            beast  loaded                                         1 h
                      can't answer: wedged
                      is being unloaded, and gets nothing new
later          beast  unloaded
Qwen/Qwen3-8B  attic  loaded, but its node is down

LOAD            NODE   STATE                                   FOR    WAITING
Qwen/Qwen3-32B  beast  weights      ########------------  42%   31 s        4
new                    making room                               3 s        1
theirs          beast  awaited                                 1 min        0"""


def test_a_person_sees_it_at_a_glance() -> None:
    assert drawn(EXAMPLE, Screen(is_plain=True)) == SHOWN


@pytest.mark.parametrize("width", [60, 80, 100])
def test_it_fits_the_terminal(width: int) -> None:
    lines = drawn(EXAMPLE, Screen(width)).splitlines()
    assert max(map(len, lines[3:])) <= width
    assert any("Qwen/" in line for line in lines)


@pytest.mark.parametrize(("age", "shown"), [(None, False), (9.9, False), (75.4, True)])
def test_old_request_without_an_answer_is_shown(age: float | None, shown: bool) -> None:
    model = Model("m", "loaded", in_flight=1, oldest_unanswered_seconds=age)
    text = drawn(Fleet([Node("a", "a:1", "up", models=[model])], [], Totals(1, 1)), Screen())
    assert ("oldest unanswered request: 1 min" in text) is shown


def test_a_fleet_of_nobody_says_what_to_do() -> None:
    assert drawn(Fleet([], [], Totals()), Screen()) == (
        "No neurons are configured; add a [[neurons]] table to the gateway's configuration."
    )


def test_what_was_not_asked_yet_is_not_taken_for_the_whole() -> None:
    young = Fleet([Node("a", "a:1", "down")], [], Totals(nodes=1), settled=False)
    assert "0 of 1 node up, some not asked yet" in drawn(young, Screen())


# The command.


async def test_it_shows_what_is_there(tmp_path: Path) -> None:
    neuron, cold = FakeNeuron({"m": "loaded"}), FakeNeuron()
    neuron.health = HEALTH
    cold.release.clear()
    async with running_fleet(Profile("cold", pinned_on=("b",)), a=neuron, b=cold) as fleet:
        asking = asyncio.create_task(fleet.ask("cold"))
        await until(lambda: sum(fleet.gateway.table.waiting().values()) == 1)
        ask = ("status", "--url", fleet.admin_url)
        status, out, err = await cortexd(*ask, cwd=tmp_path)
        assert (status, err) == (0, "")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert "2 of 2 nodes up; 2 devices, 11.7 of 46.9 GiB in use" in lines
        assert "a up 0 Fake GPU ██████████░░░░░░░░░░ 11.7 / 23.4 GiB 41 % 63 °C" in lines
        assert "m a loaded" in lines
        assert any(line.startswith("cold b loading ") for line in lines)
        assert "\x1b" not in out
        status, out, _ = await cortexd(*ask, "--json", cwd=tmp_path)
        assert status == 0
        assert msgspec.convert(json.loads(out), Fleet).totals.waiting == 1
        cold.release.set()
        await asking


async def test_it_can_be_asked_where_clients_are(tmp_path: Path) -> None:
    async with running_fleet(admin_listen="", a=FakeNeuron()) as fleet:
        status, out, _ = await cortexd("status", "--url", fleet.url, cwd=tmp_path)
        assert (status, out.startswith("1 of 1 node up")) == (0, True)


async def test_a_terminal_gets_colours_and_a_bare_one_ascii(tmp_path: Path) -> None:
    neuron = FakeNeuron({"modèle": "loaded"})
    neuron.health = HEALTH
    async with running_fleet(a=neuron) as fleet:
        ask = ("status", "--url", fleet.admin_url)
        seen = await on_a_terminal(*ask, cwd=tmp_path, TERM="xterm", COLUMNS="80", NO_COLOR="")
        assert "\x1b[32mup\x1b[0m" in seen
        assert "█████░░░░░ " in seen
        assert "modèle" in seen
        ascii_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
        seen = await on_a_terminal(*ask, cwd=tmp_path, COLUMNS="80", **ascii_only)
        assert "\x1b" not in seen
        assert "#####----- " in seen
        assert "mod?le" in seen


async def test_a_watch_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        process = await start(
            *("status", "--watch", "--url", fleet.admin_url),
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(GUARD):
            heads = 0
            while heads < 2:
                heads += (await process.stdout.readline()).startswith(b"1 of 1 node up")
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")


async def test_a_reader_that_leaves_is_no_failure_to_be_told_of(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        ours, its = os.pipe()
        os.close(ours)
        process = await start(
            *("status", "--url", fleet.admin_url),
            cwd=tmp_path,
            stdout=its,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(its)
        async with asyncio.timeout(GUARD):
            _, err = await process.communicate()
        assert (process.returncode, err) == (141, b"")


async def test_no_gateway_is_status_1_in_words(tmp_path: Path) -> None:
    status, out, err = await cortexd("status", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("No gateway is listening at http://127.0.0.1:1. ")


async def test_what_answers_otherwise_is_no_gateway(tmp_path: Path) -> None:
    async with FakeNeuron().running() as other:
        status, _, err = await cortexd("status", "--url", other.url, cwd=tmp_path)
        assert status == 1
        assert "what is there answers 404, not like a gateway" in err


@pytest.mark.parametrize("answer", [{}, {"nodes": 1}, {"nodes": [], "loads": [], "totals": 7}])
def test_an_answer_of_another_shape_is_no_gateways(answer: dict[str, Any]) -> None:
    with pytest.raises(NoGateway, match="does not answer like a gateway"):
        understood(answer, Fleet)
