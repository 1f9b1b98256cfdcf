"""What a routing decision costs, and that it does not grow with the fleet."""

from __future__ import annotations

import argparse
import time

from cortexd.config.catalogue import Profile
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.routing import Query, Refuse, Serve, decide
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, with_node
from cortexd.wire.neuron import DeviceInfo, Discovery, Health, Model, ModelLoad

REPLICAS = 4  # of every model, however large the fleet
ROUNDS = 7
CALLS = 20_000
KEY = 0x0123456789ABCDEF


def fleet(nodes: int, models_per_node: int) -> Snapshot:
    """`nodes` × `models_per_node` models, each loaded on up to REPLICAS nodes."""
    names = max(1, nodes * models_per_node // REPLICAS)
    snapshot = Snapshot(catalogue=Catalogue.of((Profile("cold"),), {}), settled=True)
    for number in range(nodes):
        listed = {
            f"model-{(number * models_per_node + slot) % names}": "loaded"
            for slot in range(models_per_node)
        }
        seen = Observation(
            1.0,
            1.1,
            models=[Model(model, status) for model, status in listed.items()],
            health=Health(
                uptime_secs=1, models=[ModelLoad(model, in_flight=1) for model in listed]
            ),
            discovery=Discovery([DeviceInfo(0, 24000)]),
        )
        node = Node(f"node-{number:04}", f"http://node-{number}:13131")
        snapshot = with_node(snapshot, observed(node, seen, snapshot.catalogue, unhealthy_after=3))
    return snapshot


def microseconds(snapshot: Snapshot, query: Query, expected: type) -> float:
    """The best of several rounds: what the decision costs when nothing else disturbs it."""
    ledger = Ledger(in_flight={("node-0000", query.model): 1})
    assert isinstance(decide(query, snapshot, ledger, 1.0), expected)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            decide(query, snapshot, ledger, 1.0)
        best = min(best, time.perf_counter() - began)
    return best / CALLS * 1e6


def run(args: argparse.Namespace) -> None:
    """What a routing decision costs, over the sizes of the fleet."""
    print("decide: µs per decision (best of rounds; target: 5, and equal over the sizes)")
    print(f"{'fleet':>16} {'replicas':>9} {'in turn':>8} {'by key':>8} {'not found':>10}")
    for nodes, models in ((1, 1), (4, 20), (100, 20), (1000, 20)):
        snapshot = fleet(nodes, models)
        replicas = len(snapshot.replicas["model-0"])
        in_turn = microseconds(snapshot, Query("model-0"), Serve)
        by_key = microseconds(snapshot, Query("model-0", affinity=lambda: KEY), Serve)
        missing = microseconds(snapshot, Query("nobody"), Refuse)
        costs = f"{in_turn:>8.2f} {by_key:>8.2f} {missing:>10.2f}"
        print(f"{nodes:>9} × {models:<4} {replicas:>9} {costs}")
