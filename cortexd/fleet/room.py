"""Who has to leave so that a model fits: on which devices of one node, and as few as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Final

import msgspec

from cortexd.fleet.residents import Resident

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
    there: dict[int, list[int]] = {index: [] for index in left}
    reach = dict(left)
    for place, resident in enumerate(willing):
        for index, mb in gains[resident.model].items():
            if index in reach and mb > 0:
                reach[index] += mb
                there[index].append(place)
    reachable = [index for index in left if reach[index] >= share]
    reachable.sort(key=lambda index: (-left[index], index))
    rooms = []
    for devices in combinations(reachable[:MOST_DEVICES], count):
        short = {index: share - left[index] for index in devices if left[index] < share}
        asked = sorted({place for index in short for place in there[index]})
        leaving = _leaving(short, gains, [willing[place] for place in asked])
        rooms.append(Room(tuple(sorted(devices)), leaving))
    return min(
        rooms,
        key=lambda room: (
            len(room.leaving),
            room.last_use,
            -sum(left[index] for index in room.devices),
            room.devices,
        ),
        default=None,
    )


def gains(
    residents: Iterable[Resident], left: Mapping[int, float], limits: Mapping[int, float]
) -> dict[str, dict[int, float]]:
    """Model → device → MiB that it gives back when it goes.

    limits: device → MiB that are there for models at all. Those of unknown size are taken to hold,
    between them, what nobody else accounts for.
    """
    residents = list(residents)
    unexplained = {index: limits[index] - mb for index, mb in left.items()}
    unknown = dict.fromkeys(left, 0)
    for resident in residents:
        for index in resident.devices:
            if index in unexplained:
                unexplained[index] -= resident.mb or 0.0
                unknown[index] += resident.mb is None
    return {
        resident.model: {
            index: max(0.0, unexplained[index] / unknown[index])
            if resident.mb is None
            else resident.mb
            for index in resident.devices
            if index in left
        }
        for resident in residents
    }


def _leaving(
    short: dict[int, float],
    gains: Mapping[str, Mapping[int, float]],
    willing: Iterable[Resident],
) -> tuple[Resident, ...]:
    """Have them leave in their order until nothing is short, then spare whom that did not need."""
    leaving: list[Resident] = []
    for resident in willing:
        gain = gains[resident.model]
        if any(mb > 0 and gain.get(index) for index, mb in short.items()):
            leaving.append(resident)
            for index in short:
                short[index] -= gain.get(index, 0.0)
    for resident in leaving[::-1]:
        gain = gains[resident.model]
        if all(mb + gain.get(index, 0.0) <= 0 for index, mb in short.items()):
            leaving.remove(resident)
            for index in short:
                short[index] += gain.get(index, 0.0)
    return tuple(leaving)
