from __future__ import annotations

import logging

import pytest

from cortexd.control.statelog import StateLog
from cortexd.fleet.snapshot import Node
from cortexd.wire.neuron import Model

UP = Node("beast", "http://beast", healthy=True)
DOWN = Node("beast", "http://beast", trouble="refused")
UP_LINE, DOWN_LINE = "node beast is up, with 0 models", "node beast is down: refused"


class Watch:
    """A node that is looked at, and what the log says, with the time of each line."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self._log = StateLog()
        self._node = DOWN
        self.lines: list[tuple[float, str]] = []

    def at(self, now: float, node: Node) -> None:
        said = len(self._caplog.records)
        self._log.look(self._node, node, now)
        self._node = node
        self.lines += [(now, record.getMessage()) for record in self._caplog.records[said:]]


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> Watch:
    return Watch(caplog)


def test_one_line_a_change(watch: Watch) -> None:
    moved = Node("beast", "http://beast", trouble="no route")
    for now, node in enumerate((DOWN, DOWN, moved, UP, UP, DOWN, DOWN)):
        watch.at(2.0 * now, node)
    assert watch.lines == [
        (0, "node beast: refused"),
        (4, "node beast: no route"),
        (6, UP_LINE),
        (10, DOWN_LINE),
    ]


def test_no_two_lines_in_one_second_but_the_last_state_is_told(watch: Watch) -> None:
    watch.at(0.0, UP)
    watch.at(0.5, DOWN)
    watch.at(0.9, DOWN)
    watch.at(1.2, DOWN)
    assert watch.lines == [(0.0, UP_LINE), (1.2, DOWN_LINE)]


def test_a_change_that_was_taken_back_within_the_second_is_no_line(watch: Watch) -> None:
    watch.at(0.0, UP)
    watch.at(0.2, DOWN)
    watch.at(0.4, UP)
    watch.at(5.0, UP)
    assert watch.lines == [(0.0, UP_LINE)]


def test_a_node_that_flaps_is_told_of_once_and_then_what_it_settled_on(watch: Watch) -> None:
    for now in range(60):
        watch.at(float(now), DOWN if now % 2 else UP)
    for now in range(60, 80):
        watch.at(float(now), DOWN)
    assert watch.lines == [
        *[(float(now), DOWN_LINE if now % 2 else UP_LINE) for now in range(5)],
        (
            5.0,
            "node beast has gone up and down 3 times in the last minute; look at its network or "
            "its process",
        ),
        (69.0, DOWN_LINE),
    ]


def test_slow_changes_are_no_flapping(watch: Watch) -> None:
    for now in range(0, 600, 15):
        watch.at(float(now), DOWN if now % 2 else UP)
    assert len(watch.lines) == 40


def test_another_nodes_lines_hold_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = StateLog()
    for name in ("a", "b"):
        log.look(Node(name, "http://x"), Node(name, "http://x", healthy=True), 1.0)
    assert len(caplog.records) == 2


def test_a_restart_is_told(watch: Watch) -> None:
    watch.at(0.0, UP)
    watch.at(2.0, Node("beast", "http://beast", healthy=True, epoch=1))
    assert watch.lines[-1] == (2.0, "node beast has restarted")


def test_a_model_that_an_alias_hides_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    states, aliases = StateLog(), {"small": "m", "unused": "m"}
    has = [
        Node(name, "", healthy=True, models={"small": Model("small", "loaded")}) for name in "ab"
    ]
    for node in (*has, *has):
        states.look(node, node, 0.0, aliases)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "node a has a model 'small', but that is an alias of 'm'" in line


def test_an_alias_of_what_nobody_has_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    node = Node("a", "", healthy=True, models={"m": Model("m", "loaded")})
    StateLog().look(node, node, 0.0, {"small": "m"})
    assert caplog.records == []
