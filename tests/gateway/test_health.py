from __future__ import annotations

from cortexd.fleet.snapshot import Failure, Ledger, Snapshot
from cortexd.gateway.health import MAX_REASONS, Condition, failed_loads, status_line
from cortexd.gateway.health import condition as condition_of
from cortexd.wire.neuron import Model
from tests.fleet.fleet import BROKEN, fleet, node


def condition(snapshot: Snapshot, longest_wait: float = 0.0) -> Condition:
    return condition_of(snapshot, longest_wait, bound=1800.0)


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


def test_a_wait_past_its_bound_impairs() -> None:
    assert condition(fleet(node("a")), longest_wait=1799.0).status == "ok"
    seen = condition(fleet(node("a")), longest_wait=1900.4)
    assert seen.status == "impaired"
    assert seen.reasons == [
        "a request has waited for a model for 1900 s; it should not for over 1800 s"
    ]


def test_of_very_many_reasons_the_first_are_told() -> None:
    broken = {f"m{i}": Model(f"m{i}", "loaded", servable=BROKEN) for i in range(1000)}
    seen = condition(fleet(node("a", broken)))  # type: ignore[arg-type]
    assert len(seen.reasons) == MAX_REASONS
    assert seen.reasons[-1] == f"and {1001 - MAX_REASONS} more"


def test_a_reload_that_failed_impairs_and_comes_first() -> None:
    seen = condition_of(fleet(node("b", up=False)), 0.0, 1.0, ["not reloaded: why"])
    assert seen.status == "impaired"
    assert seen.reasons == ["not reloaded: why", "node b is down: connection refused"]


def test_the_status_is_one_line_that_counts_each_model_once() -> None:
    snapshot = fleet(
        node("a", {"m": "loaded", "n": "unloaded"}),
        node("b", {"m": "loaded", "o": "loaded"}),
        node("c", up=False),
    )
    assert status_line(snapshot, 7) == "2 of 3 nodes up, 2 models, 7 in flight"
    assert status_line(snapshot, 0, ["x", "y"]).endswith("0 in flight; x; y")


def test_models_that_failed_impair_with_their_reason() -> None:
    ledger = Ledger()
    snapshot = fleet(
        node("a", {"m": Model("m", "failed", error="out of memory"), "n": "loaded"}),
        node("b", {"m": "loaded"}),
    )
    ledger.failures["b", "o"] = Failure("no such file", until=20.0)
    ledger.failures["b", "n"] = Failure("loaded on a by now", until=20.0)
    failed = failed_loads(snapshot, ledger, now=10.0)
    assert failed == {("a", "m"): "out of memory", ("b", "o"): "no such file"}
    assert failed_loads(snapshot, ledger, now=20.0) == {("a", "m"): "out of memory"}
    seen = condition_of(snapshot, 0.0, 1.0, failed=failed)
    assert seen.status == "impaired"
    assert seen.reasons == [
        "model m failed to load on a: out of memory",
        "model o failed to load on b: no such file",
    ]


def test_silent_replica_impairs() -> None:
    seen = condition_of(fleet(node("a")), 0.0, 1.0, silent={("a", "m"): 75.4})
    assert (seen.status, seen.reasons) == (
        "impaired",
        ["model m on a has sent nothing for 75 s to the oldest of its requests"],
    )
