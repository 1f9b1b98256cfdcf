from __future__ import annotations

from cortexd.gateway.health import condition
from cortexd.wire.neuron import Model
from tests.fleet.fleet import BROKEN, fleet, node


def test_all_is_well() -> None:
    assert condition(fleet(node("a", {"m": "loaded"}))).status == "ok"
    assert condition(fleet()).status == "ok"


def test_a_node_that_is_down_degrades() -> None:
    seen = condition(fleet(node("a"), node("b", up=False)))
    assert seen.status == "degraded"
    assert seen.reasons == ["node b is down: connection refused"]


def test_something_resident_that_can_not_serve_impairs_and_every_reason_is_told() -> None:
    seen = condition(
        fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}), node("b", up=False))
    )
    assert seen.status == "impaired"
    assert seen.reasons == [
        "model m on a can't serve: wedged",
        "node b is down: connection refused",
    ]
