"""What routing and placement cost, and that a decision does not grow with the fleet."""

from __future__ import annotations

import argparse
import time
from zlib import crc32

from cortexd.config.catalogue import Profile
from cortexd.fleet.catalogue import Catalogue
from cortexd.fleet.observe import Observation, observed
from cortexd.fleet.placement import NoPlacement, Placement, place
from cortexd.fleet.routing import Query, Refuse, Serve, decide
from cortexd.fleet.snapshot import Ledger, Node, Snapshot, with_node
from cortexd.wire.neuron import DeviceHealth, DeviceInfo, Discovery, Health, Model, ModelLoad

REPLICAS = 4  # of every model, however large the fleet
ROUNDS = 7
CALLS = 20_000
KEY = 0x0123456789ABCDEF
DEVICES = 8  # of every node that a model may be placed on
RESIDENTS = 20
MIB = 24_000  # of every device


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


def crowd(nodes: int, free_mb: int, priority: int) -> Snapshot:
    """Nodes of DEVICES devices with so much free on each, and RESIDENTS models of that class."""
    resident = {
        f"model-{slot}": Profile(f"model-{slot}", residency_priority=priority)
        for slot in range(RESIDENTS)
    }
    snapshot = Snapshot(catalogue=Catalogue.of(tuple(resident.values()), {}), settled=True)
    for number in range(nodes):
        seen = Observation(
            1.0,
            1.1,
            models=[
                Model(model, "loaded", devices=[slot % DEVICES], vram_used_mb=7000 + number)
                for slot, model in enumerate(resident)
            ],
            health=Health(devices=[DeviceHealth(i, vram_free_mb=free_mb) for i in range(DEVICES)]),
            discovery=Discovery([DeviceInfo(i, MIB) for i in range(DEVICES)]),
        )
        node = Node(f"node-{number:04}", f"http://node-{number}:13131")
        snapshot = with_node(snapshot, observed(node, seen, snapshot.catalogue, unhealthy_after=3))
    return snapshot


def milliseconds(snapshot: Snapshot, profile: Profile, expected: type) -> float:
    """The best of several rounds: what a placement costs."""
    ledger = Ledger(
        last_access={
            (node.name, model): float(crc32(f"{node.name} {model}".encode()) % 1000)
            for node in snapshot.nodes.values()
            for model in node.models
        }
    )
    assert isinstance(place(profile, snapshot, ledger, 2000.0), expected)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        place(profile, snapshot, ledger, 2000.0)
        best = min(best, time.perf_counter() - began)
    return best * 1e3


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
    print()
    print(
        f"place: ms per placement, {DEVICES} devices and {RESIDENTS} models a node "
        "(best of rounds; target: 5 at 200 nodes)"
    )
    print(f"{'nodes':>6} {'devices':>8} {'has room':>9} {'makes room':>11} {'no room':>8}")
    for nodes in (1, 20, 200):
        for count in (1, 2, 4):
            wanted = Profile("wanted", vram_mb=9000 * count, min_devices=count)
            room = milliseconds(crowd(nodes, 10_000, 100), wanted, Placement)
            makes = milliseconds(crowd(nodes, 3000, 100), wanted, Placement)
            none = milliseconds(crowd(nodes, 3000, 200), wanted, NoPlacement)
            print(f"{nodes:>6} {count:>8} {room:>9.2f} {makes:>11.2f} {none:>8.2f}")
