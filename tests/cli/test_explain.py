"""`cortexd explain`: what a person reads of a decision, and the command before a real gateway."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cortexd.cli.explain import drawn
from cortexd.cli.screen import Screen
from cortexd.config.catalogue import Profile
from cortexd.fleet.explain import Explanation, Verdict
from tests.cli.commands import cortexd, on_a_terminal
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet

EXAMPLE = Explanation(
    "Qwen/Qwen3-8B",
    "serve",
    "It would be served by beast: it is loaded.",
    alias="small",
    node="beast",
    nodes=[
        Verdict("attic", "down", "the node is down: connection refused"),
        Verdict(
            "beast",
            "up",
            "is loaded there",
            model_status="loaded",
            in_flight=3,
            score=1.5,
            free_mb={1: 12000.4, 0: 4000.0},
        ),
    ],
)

SHOWN = """\
Qwen/Qwen3-8B (asked for as small)
It would be served by beast: it is loaded.

NODE   STATE  MODEL   IN FLIGHT  SCORE  FREE
beast  up     loaded          3   1.50  0: 4000, 1: 12000 MiB
       is loaded there
attic  down
       the node is down: connection refused"""


def test_the_decision_comes_first_and_then_the_node_that_it_is_about() -> None:
    assert drawn(EXAMPLE, Screen(is_plain=True)) == SHOWN


def test_words_are_wrapped_and_never_cut() -> None:
    narrow = drawn(EXAMPLE, Screen(40))
    assert max(map(len, narrow.splitlines())) <= 40
    assert "connection refused" in " ".join(narrow.split())


async def test_it_says_what_would_become_of_a_request(tmp_path: Path) -> None:
    tiny = {"index": 0, "vram_total_mb": 8000}
    neurons = {"a": FakeNeuron(), "b": FakeNeuron(devices=[tiny]), "c": FakeNeuron({"n": "loaded"})}
    async with running_fleet(
        Profile("org/m", vram_mb=18000), aliases={"small": "org/m"}, **neurons
    ) as fleet:
        ask = ("explain", "small", "--url", fleet.admin_url)
        status, out, err = await cortexd(*ask, cwd=tmp_path)
        assert (status, err) == (0, "")
        assert out.startswith("org/m (asked for as small)\nIt would be loaded on a, device 0.\n")
        assert "can't load it: 1 device of 18000 MiB or more needed" in out
        assert all(fleet.loads(name) == [] for name in "abc")
        status, out, _ = await cortexd(*ask, "--json", cwd=tmp_path)
        told = msgspec.json.decode(out, type=Explanation)
        assert (status, told.decision, told.node) == (0, "load", "a")
        assert "\x1b[1morg/m" in await on_a_terminal(*ask, cwd=tmp_path, TERM="xterm", NO_COLOR="")


async def test_a_model_that_nobody_has_is_explained_too(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        ask = ("explain", "x&y=/?\x1b[2J", "--url", fleet.url)
        status, out, _ = await cortexd(*ask, cwd=tmp_path)
        assert status == 0
        assert "It would be refused: The model " in out
        assert "\x1b" not in out


async def test_no_name_is_refused_in_words(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        status, out, err = await cortexd("explain", "", "--url", fleet.url, cwd=tmp_path)
        assert (status, out) == (1, "")
        assert err == "Name a model: /api/explain?model=NAME.\n"
