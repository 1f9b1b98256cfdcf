"""Who has to leave so that a model fits: on which devices of one node, and as few as possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Final

import msgspec

from cortexd.fleet.residents import Resident

_Offer = tuple[Resident, Mapping[int, float]]  # who would leave, and device → MiB that it gives

MOST_DEVICES: Final = 8  # of which every combination is tried; beyond that, of the freest ones


class Room(msgspec.Struct, frozen=True):
    """The devices for a model, ascending, and who has to leave them first."""

    devices: tuple[int, ...]
    leaving: tuple[Resident, ...]

    @property
    def last_use(self) -> float:
        """The latest use of those who leave."""
        return max((resident.last_use for resident in self.leaving), default=0.0)


def make_room(
    count: int,
    share: float,
    left: Mapping[int, float],
    gains: Mapping[str, Mapping[int, float]],
    willing: Sequence[Resident],
) -> Room | None:
    """The best `count` devices with `share` MiB on each once some of `willing` have left, or None.

    left: device → MiB, of the devices to choose from; below 0 where more is promised than there is.
    gains: model → device → MiB that it gives back. willing: in the order in which to ask them.

    The best set loses the fewest models, then those that were used least recently, then it is the
    one with most memory free.
    """
    offers: list[_Offer] = []
    there: dict[int, list[_Offer]] = {index: [] for index in left}
    reach = dict(left)
    for resident in willing:
        offer = resident, gains[resident.model]
        offers.append(offer)
        for index, mb in offer[1].items():
            if index in reach and mb > 0:
                reach[index] += mb
                there[index].append(offer)
    reachable = [index for index in left if reach[index] >= share]
    reachable = sorted(reachable, key=lambda index: (-left[index], index))[:MOST_DEVICES]
    if len(reachable) < count:
        return None
    short = {index: share - left[index] for index in reachable if left[index] < share}
    met = [resident.model for index in short for resident, _ in there[index]]
    if len(met) == len(set(met)):  # nobody is on two of them: each is cleared for itself
        alone = {index: _leaving({index: short[index]}, there[index]) for index in short}
        return _cheapest(count, {index: alone.get(index, ()) for index in reachable})
    rooms = []
    for devices in combinations(reachable, count):
        needed = {index: short[index] for index in devices if index in short}
        rooms.append(Room(tuple(sorted(devices)), _leaving(needed, offers)))
    return min(
        rooms,
        key=lambda room: (
            len(room.leaving),
            room.last_use,
            -sum(left[index] for index in room.devices),
            room.devices,
        ),
    )


def _cheapest(count: int, leaving: Mapping[int, tuple[Resident, ...]]) -> Room:
    """The best of all combinations, without trying any: what a device costs does not depend on the
    others. leaving: device → who leaves it, of the freest first."""
    costs = {
        index: (len(who), max((one.last_use for one in who), default=-math.inf))
        for index, who in leaving.items()
    }
    chosen = sorted(leaving, key=costs.__getitem__)[:count]
    most = costs[chosen[-1]][0]
    latest = max(costs[index][1] for index in chosen)
    # Those that lose fewer are all in; which of the equal ones is for the memory that is free.
    equals = [index for index in leaving if costs[index][0] == most and costs[index][1] <= latest]
    fewer = [index for index in chosen if costs[index][0] < most]
    devices = sorted([*fewer, *equals[: count - len(fewer)]])
    return Room(tuple(devices), tuple(one for index in devices for one in leaving[index]))


def gains(
    residents: Iterable[Resident], left: Mapping[int, float], limits: Mapping[int, float]
) -> dict[str, dict[int, float]]:
    """Model → device → MiB that it gives back when it goes.

    limits: device → MiB that are there for models at all. Those of unknown size are taken to hold,
    between them, what nobody else accounts for.
    """
    residents = list(residents)
    guess: dict[int, float] = {}
    if any(resident.mb is None for resident in residents):
        unexplained = {index: limits[index] - mb for index, mb in left.items()}
        unknown = dict.fromkeys(left, 0)
        for resident in residents:
            for index in resident.devices:
                if index in unexplained:
                    unexplained[index] -= resident.mb or 0.0
                    unknown[index] += resident.mb is None
        guess = {index: max(0.0, mb / (unknown[index] or 1)) for index, mb in unexplained.items()}
    return {
        resident.model: {index: guess[index] for index in resident.devices}
        if resident.mb is None
        else dict.fromkeys(resident.devices, resident.mb)
        for resident in residents
    }


def _leaving(short: dict[int, float], offers: Iterable[_Offer]) -> tuple[Resident, ...]:
    """Have them leave in their order until nothing is short, then spare whom that did not need."""
    leaving: list[_Offer] = []
    for offer in offers:
        if max(short.values(), default=0.0) <= 0:
            break
        if any(mb > 0 and short.get(index, 0.0) > 0 for index, mb in offer[1].items()):
            leaving.append(offer)
            for index, mb in offer[1].items():
                if index in short:
                    short[index] -= mb
    for offer in leaving[::-1]:
        if all(mb + offer[1].get(index, 0.0) <= 0 for index, mb in short.items()):
            leaving.remove(offer)
            for index, mb in offer[1].items():
                if index in short:
                    short[index] += mb
    return tuple(resident for resident, _ in leaving)
