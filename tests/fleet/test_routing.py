from __future__ import annotations

import pytest

from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.fleet.routing import Decision, Lazy, Load, Query, Refuse, Serve, Wait, decide
from cortexd.fleet.snapshot import Failure, Ledger, Snapshot
from cortexd.wire.neuron import Activation, Model
from tests.fleet.fleet import BROKEN, fleet, node

M = Profile("m")


def asked(
    snapshot: Snapshot, ledger: Ledger | None = None, *, tried: tuple[str, ...] = ()
) -> Decision:
    return decide(Query("m", tried), snapshot, ledger or Ledger(), 100.0)


def goes_to(decision: Decision) -> tuple[str, str | None]:
    match decision:
        case Serve(replica):
            return "serve", replica.node
        case Lazy(replica):
            return "lazy", replica.node
        case Load(_, placement):
            return "load", placement.node
        case Wait(_, reason, where):
            return reason, where
        case Refuse(refusal):
            return refusal.kind.code, None


# The four priorities, and what stands in their way. Each row: the fleet, and where "m" goes.
@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        pytest.param(
            fleet(node("a", {"m": "unloaded"}), node("b", {"m": "loaded"}), models=(M,)),
            ("serve", "b"),
            id="loaded comes before unloaded",
        ),
        pytest.param(
            fleet(node("a"), node("b", {"m": "unloaded"}), models=(M,)),
            ("lazy", "b"),
            id="unloaded comes before the catalogue",
        ),
        pytest.param(fleet(node("a"), models=(M,)), ("load", "a"), id="the catalogue is loaded"),
        pytest.param(fleet(node("a")), ("model_not_found", None), id="unknown everywhere"),
        pytest.param(
            fleet(node("a", {"m": "reloading"}), node("b", {"m": "loaded"})),
            ("serve", "b"),
            id="loaded comes before reloading",
        ),
        pytest.param(
            fleet(node("a", {"m": "reloading"}), node("b", {"m": "unloaded"})),
            ("serve", "a"),
            id="reloading counts as loaded",
        ),
        pytest.param(
            fleet(node("a", {"m": "loading"}), node("b", {"m": "unloaded"}), models=(M,)),
            ("loading", "a"),
            id="a load elsewhere is joined, no second copy",
        ),
        pytest.param(
            fleet(node("a", {"m": "recovering"}), node("b"), models=(M,)),
            ("recovering", "a"),
            id="a recovery is waited for",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(in_progress="m")), models=(M,)),
            ("loading", "a"),
            id="a node that activates it counts as loading",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(state="pre_warming", pending=["m"]))),
            ("loading", "a"),
            id="pending while pre-warming counts as loading",
        ),
        pytest.param(
            fleet(node("a", activation=Activation(state="ready", pending=["m"]))),
            ("model_not_found", None),
            id="pending on a node that is ready does not",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, up=False), node("b"), models=(M,)),
            ("load", "b"),
            id="a node that is down does not count",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, draining=True), node("b"), models=(M,)),
            ("load", "b"),
            id="neither does one that drains",
        ),
        pytest.param(
            fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}), node("b"), models=(M,)),
            ("load", "b"),
            id="an unservable replica is passed over",
        ),
        pytest.param(
            fleet(node("a", {"m": "failed"}), models=(M,)),
            ("load", "a"),
            id="a failed one is loaded anew",
        ),
        pytest.param(
            fleet(node("a", {"m": "zombie"}), models=(M,)),
            ("load", "a"),
            id="an unknown status is never routed to",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}), settled=False),
            ("serve", "a"),
            id="a loaded model is served before the fleet is settled",
        ),
        pytest.param(
            fleet(node("a", {"m": "unloaded"}), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: lazy",
        ),
        pytest.param(
            fleet(node("a"), models=(M,), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: load",
        ),
        pytest.param(
            fleet(node("a"), settled=False),
            ("starting", None),
            id="anything else waits for the first polls: 404",
        ),
    ],
)
def test_the_order_of_routing(snapshot: Snapshot, expected: tuple[str, str | None]) -> None:
    assert goes_to(asked(snapshot)) == expected


# The refusal table, in its order.
@pytest.mark.parametrize(
    ("snapshot", "kind", "words"),
    [
        pytest.param(fleet(), errors.NO_HEALTHY_NODES, "[[neurons]]", id="no nodes at all"),
        pytest.param(
            fleet(node("a", up=False), models=(M,)),
            errors.NO_HEALTHY_NODES,
            "a (connection refused)",
            id="all nodes down",
        ),
        pytest.param(
            fleet(node("a", up=False)),
            errors.NO_HEALTHY_NODES,
            "a (connection refused)",
            id="no healthy node comes before not found",
        ),
        pytest.param(
            fleet(node("a", {"m": "loaded"}, up=False), node("b")),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "a (unhealthy)",
            id="known only to a node that is down",
        ),
        pytest.param(
            fleet(node("a"), node("b", up=False), models=(Profile("m", pinned_on=("b",)),)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "b (unhealthy (connection refused))",
            id="could be only on a node that is down",
        ),
        pytest.param(
            fleet(node("a", draining=True), node("b", gpus=()), models=(M,)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "a (draining)",
            id="could be only on a node that drains",
        ),
        pytest.param(
            fleet(node("a", gpus=None), models=(M,)),
            errors.FEASIBLE_NODE_UNHEALTHY,
            "a (not described yet)",
            id="could be on a node that is not described",
        ),
        pytest.param(
            fleet(node("a", {"m": Model("m", "loaded", servable=BROKEN)}), models=(M,)),
            errors.MODEL_UNSERVABLE,
            "a says wedged",
            id="resident but unservable everywhere",
        ),
        pytest.param(
            fleet(node("a")), errors.MODEL_NOT_FOUND, "GET /v1/models", id="nobody knows it"
        ),
        pytest.param(
            fleet(node("a", gpus=(8000,)), models=(Profile("m", min_device_vram_mb=9000),)),
            errors.NO_FEASIBLE_NEURON,
            "a: 1 device of 9000 MiB or more needed, it has 1 device of 8000 MiB",
            id="no topology holds it",
        ),
    ],
)
def test_the_refusals(snapshot: Snapshot, kind: errors.Kind, words: str) -> None:
    decision = asked(snapshot)
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is kind
    assert words in decision.refusal.message
    assert decision.refusal.retry_after == kind.retry_after


def test_a_failed_load_is_refused_with_the_nodes_words_until_its_back_off_ends() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("disk on fire", until=107.2)})
    decision = asked(fleet(node("a"), models=(M,)), ledger)
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.COLD_LOAD_FAILED
    assert "a says disk on fire" in decision.refusal.message
    assert decision.refusal.retry_after == 8

    ledger.failures["a", "m"] = Failure("disk on fire", until=99.0)
    assert goes_to(asked(fleet(node("a"), models=(M,)), ledger)) == ("load", "a")


def test_the_back_off_never_rounds_to_nothing() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", until=100.01)})
    decision = asked(fleet(node("a"), models=(M,)), ledger)
    assert isinstance(decision, Refuse)
    assert decision.refusal.retry_after == 1


def test_a_load_goes_to_the_next_candidate_while_the_first_backs_off() -> None:
    ledger = Ledger(failures={("a", "m"): Failure("no", until=107.0)})
    assert goes_to(asked(fleet(node("a"), node("b"), models=(M,)), ledger)) == ("load", "b")


def test_our_own_load_is_joined_although_no_poll_has_seen_it() -> None:
    snapshot = fleet(node("a"), node("b", {"m": "unloaded"}), models=(M,))
    assert goes_to(asked(snapshot, Ledger(loading={"m": "a"}))) == ("loading", "a")


def test_where_it_is_being_unloaded_nothing_new_is_sent() -> None:
    ledger = Ledger(gates={"m": {"a"}})
    there = node("a", {"m": "loaded"})
    assert goes_to(asked(fleet(there, node("b", {"m": "loaded"})), ledger)) == ("serve", "b")
    assert goes_to(asked(fleet(there, node("b", {"m": "unloaded"})), ledger)) == ("lazy", "b")
    assert goes_to(asked(fleet(there, node("b"), models=(M,)), ledger)) == ("unloading", "a")
    asleep = fleet(node("a", {"m": "unloaded"}))
    assert goes_to(asked(asleep, ledger)) == ("unloading", "a")


def test_among_loaded_replicas_the_one_with_fewer_of_our_requests_is_chosen() -> None:
    snapshot = fleet(node("a", {"m": "loaded"}), node("b", {"m": "loaded"}))
    assert goes_to(asked(snapshot, Ledger(in_flight={("a", "m"): 3, ("b", "m"): 1})))[1] == "b"


def test_a_node_we_woke_is_woken_again_rather_than_a_second_one() -> None:
    snapshot = fleet(node("a", {"m": "unloaded"}), node("b", {"m": "unloaded"}))
    assert goes_to(asked(snapshot)) == ("lazy", "a")
    assert goes_to(asked(snapshot, Ledger(in_flight={("b", "m"): 1}))) == ("lazy", "b")


@pytest.mark.parametrize("status", ["loaded", "unloaded"])
def test_a_replica_that_failed_this_request_is_not_asked_again(status: str) -> None:
    snapshot = fleet(node("a", {"m": status}), node("b", {"m": status}), models=(M,))
    assert goes_to(asked(snapshot, tried=("a",)))[1] == "b"
    decision = asked(snapshot, tried=("a", "b"))
    assert isinstance(decision, Refuse)
    assert decision.refusal.kind is errors.UPSTREAM_FAILED
