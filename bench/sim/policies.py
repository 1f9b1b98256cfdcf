"""The policies that are compared: ours, which is the gateway's own code, and simpler ones.

All of them answer with the same words (`Serve`, `Load`, …) and are played by the same gateway: a
model is loaded once however many ask for it, a failed load backs off and another host is tried.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol

from bench.sim.picture import Picture
from bench.sim.things import Turn
from cortexd import errors
from cortexd.config.catalogue import Profile
from cortexd.errors import Refusal
from cortexd.fleet import assessment, placement, routing
from cortexd.fleet.choice import hashed
from cortexd.fleet.placement import NoPlacement, Placement
from cortexd.fleet.residents import displaceable
from cortexd.fleet.routing import Decision, Load, Query, Refuse, Serve, Wait
from cortexd.fleet.snapshot import Node, Replica
from cortexd.wire.neuron import LOADED, LOADING, LoadRequest


class Policy(Protocol):
    """Where a request goes, and where a model does.

    is_patient: waits for freed memory until it is reported, and insists on room after a while.
    kills: unloads models that work.
    """

    name: str
    is_patient: bool
    kills: bool

    def decide(self, turn: Turn, picture: Picture, now: float) -> Decision:
        """What happens to a request."""

    def place(
        self,
        model: str,
        picture: Picture,
        now: float,
        avoid: Collection[str] = (),
        *,
        unasked: bool = False,
    ) -> Placement | NoPlacement:
        """Where a load goes. unasked: it is not for a request."""

    def relief(self, model: str, placed: Placement, picture: Picture) -> tuple[str, ...]:
        """Who else goes, after a load has run out of memory."""


class Ours:
    """The gateway's own decisions."""

    name = "cortexd"
    is_patient = True
    kills = False

    def decide(self, turn: Turn, picture: Picture, now: float) -> Decision:
        """`cortexd.fleet.routing.decide`."""
        key = hashed(turn.talk.encode())
        query = Query(turn.model, affinity=lambda: key)
        return routing.decide(query, picture.snapshot, picture.ledger, now)

    def place(
        self,
        model: str,
        picture: Picture,
        now: float,
        avoid: Collection[str] = (),
        *,
        unasked: bool = False,
    ) -> Placement | NoPlacement:
        """`cortexd.fleet.placement.place`."""
        profile = picture.snapshot.catalogue.profiles[model]
        return placement.place(
            profile, picture.snapshot, picture.ledger, now, avoid, unasked=unasked
        )

    def relief(self, model: str, placed: Placement, picture: Picture) -> tuple[str, ...]:
        """Everybody there who may be asked to leave: how much is short nobody knows."""
        profile = picture.snapshot.catalogue.profiles[model]
        node, devices = picture.snapshot.nodes[placed.node], set(placed.spec.devices or ())
        return tuple(
            one.model
            for one in displaceable(
                profile, node, picture.snapshot, picture.ledger, picture.clock.now
            )
            if not devices.isdisjoint(one.devices)
        )


class Simple:
    """What the simple policies have in common. They differ in `choose` and `host`.

    They know what a host reported to be free, make room by unloading the least recently used of
    the idle models, wait if that is not enough, and put a model on the devices with most free.
    """

    name = ""
    is_patient = False
    kills = False

    def choose(self, replicas: Sequence[Replica], picture: Picture) -> Replica:
        """The replica for a request."""
        raise NotImplementedError

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """The node for a load."""
        raise NotImplementedError

    def decide(self, turn: Turn, picture: Picture, now: float) -> Decision:
        """A loaded replica, else a load."""
        model = turn.model
        here = [
            replica
            for replica in picture.snapshot.replicas.get(model, ())
            if not picture.is_gated((replica.node, model))
        ]
        if able := [replica for replica in here if replica.status == LOADED]:
            return Serve(self.choose(able, picture))
        if not picture.snapshot.settled:
            return Wait(model, "starting")
        if model in picture.ledger.loading or any(r.status == LOADING for r in here):
            return Wait(model, "loading", picture.ledger.loading.get(model))
        if gates := picture.ledger.gates.get(model):
            return Wait(model, "unloading", min(gates))
        placed = self.place(model, picture, now)
        if isinstance(placed, Placement):
            return Load(model, placed)
        kind = errors.COLD_LOAD_FAILED if placed.failures else errors.NO_FEASIBLE_NEURON
        return Refuse(Refusal(kind, f"{model} goes nowhere"))

    def place(
        self,
        model: str,
        picture: Picture,
        now: float,
        avoid: Collection[str] = (),
        *,
        unasked: bool = False,
    ) -> Placement | NoPlacement:
        """A feasible node where it has not just failed."""
        profile = picture.snapshot.catalogue.profiles[model]
        nothing = NoPlacement({}, {}, {})
        nodes: list[Node] = []
        for name, node in sorted(picture.snapshot.nodes.items()):
            failed = picture.ledger.failures.get((name, model))
            if name in avoid or not node.healthy or assessment.infeasibility(profile, node):
                continue
            if failed and failed.until > now:
                nothing.failures[name] = failed
            else:
                nodes.append(node)
        if not nodes:
            return nothing
        return self._on(profile, self.host(nodes, picture), picture)

    def relief(self, model: str, placed: Placement, picture: Picture) -> tuple[str, ...]:
        """The least recently used one."""
        return _least_recent(placed, picture, working=self.kills)[:1]

    def _on(self, profile: Profile, node: Node, picture: Picture) -> Placement:
        hardware = node.hardware
        fitting = assessment.fitting_devices(profile, hardware) if hardware else []
        free = picture.free(node.name, fitting)
        best = sorted(sorted(free, key=lambda at: -free[at])[: profile.min_devices])
        spec = LoadRequest(profile.id, profile.harness, devices=best)
        share = (profile.vram_mb or 0) / profile.min_devices
        placed = Placement(node.name, spec, dict.fromkeys(best, share))
        victims: list[str] = []
        blockers: list[str] = []
        for model in _least_recent(placed, picture, working=True):
            if all(free[device] >= share for device in best):
                break
            info = node.models[model]
            devices = info.devices or []
            if not any(free.get(device, share) < share for device in devices):
                continue
            (victims if picture.is_idle((node.name, model)) else blockers).append(model)
            for device in devices:
                if device in free:
                    free[device] += (info.vram_used_mb or 0) / len(devices)
        return Placement(node.name, spec, placed.needs, tuple(victims), tuple(blockers))


class Basic(Simple):
    """The first node by name, its first devices, the first replica. Nothing is known of memory:
    when a load fails the least recently used model goes, idle ones first, and it is tried again."""

    name = "first by name"
    kills = True

    def choose(self, replicas: Sequence[Replica], picture: Picture) -> Replica:
        """The first one."""
        return replicas[0]

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """The first one."""
        return nodes[0]

    def _on(self, profile: Profile, node: Node, picture: Picture) -> Placement:
        return Placement(node.name, placement.load_request(profile, node.hardware))


class RoundRobin(Simple):
    """One after the other."""

    name = "round robin"

    def __init__(self) -> None:
        self._turn = 0
        self._turns: dict[str, int] = {}

    def choose(self, replicas: Sequence[Replica], picture: Picture) -> Replica:
        """The next one of this model's."""
        model = replicas[0].model
        self._turns[model] = self._turns.get(model, -1) + 1
        return replicas[self._turns[model] % len(replicas)]

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """The next one of the fleet's."""
        self._turn += 1
        return nodes[self._turn % len(nodes)]


class LeastInFlight(Simple):
    """Where the fewest of our requests are; then the first by name."""

    name = "least in flight"

    def choose(self, replicas: Sequence[Replica], picture: Picture) -> Replica:
        """By its requests."""
        busy = picture.ledger.in_flight
        return min(replicas, key=lambda r: (busy.get((r.node, r.model), 0), r.node))

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """By the node's requests."""
        busy = dict.fromkeys((node.name for node in nodes), 0)
        for (name, _), count in picture.ledger.in_flight.items():
            if name in busy:
                busy[name] += count
        return min(nodes, key=lambda node: (busy[node.name], node.name))


class MostFree(LeastInFlight):
    """A model goes where most memory is free by the last report; a request where the fewest are."""

    name = "most free, least in flight"

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """By the freest device."""

        def freest(node: Node) -> float:
            devices = node.hardware.devices if node.hardware else []
            return max(picture.free(node.name, [device.index for device in devices]).values())

        return min(nodes, key=lambda node: (-freest(node), node.name))


class Random(Simple):
    """Any."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def choose(self, replicas: Sequence[Replica], picture: Picture) -> Replica:
        """Any."""
        return self._draw.choice(replicas)

    def host(self, nodes: Sequence[Node], picture: Picture) -> Node:
        """Any."""
        return self._draw.choice(nodes)


def policies(seed: int) -> list[Policy]:
    """A fresh one of each; ours first."""
    return [Ours(), Basic(), RoundRobin(), LeastInFlight(), MostFree(), Random(seed)]


def _least_recent(placed: Placement, picture: Picture, *, working: bool = False) -> tuple[str, ...]:
    """Residents of the devices that are asked for, the least recently used first; those that work
    last, or not at all."""
    node = picture.snapshot.nodes[placed.node]
    wanted = set(placed.spec.devices or ())
    found: list[tuple[bool, float, str]] = []
    for model, info in node.models.items():
        key = (node.name, model)
        if info.status != LOADED or picture.is_gated(key) or wanted.isdisjoint(info.devices or ()):
            continue
        works = not picture.is_idle(key)
        if working or not works:
            found.append((works, picture.ledger.last_access.get(key, 0.0), model))
    return tuple(model for _, _, model in sorted(found))
