"""What loads that overlap mean for each other's promises.

`Promise.before` is what was free when a load began. When another one begins beside it, that is free
no more, and the second promise may be gone before the first load has taken all of its memory. When
a model leaves, more is free; without that, who has made room would not find it before all loads
there have ended, and would send away still more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cortexd.fleet.snapshot import FreedMemory, Promise

Key = tuple[str, str]  # (node, model), as in the ledger

ROUNDED_OFF: Final = 0.1  # of a model's memory: its node's report of it is an estimate
NEVER_REPORTED: Final = 300.0  # seconds after an unload: the memory is not coming
PARTLY_REPORTED: Final = 30.0  # seconds after the last part of it: the rest is not coming


def begun(
    promises: Mapping[Key, Promise], key: Key, needs: Mapping[int, float], free: Mapping[int, float]
) -> dict[Key, Promise]:
    """The promises that change when a load begins, its own among them.

    needs: device → MiB that it will take. free: device → MiB that are there for it
    (`memory.before`); those of other devices are none of its business.
    """
    changed = _shifted(promises, key, needs, -1.0)
    before = {index: free[index] for index in needs if index in free}
    return changed | {key: Promise(needs, before)}


def given_back(promises: Mapping[Key, Promise], key: Key) -> dict[Key, Promise]:
    """The promises that change when a load has failed: its memory is there for the others again."""
    promise = promises.get(key)
    if promise is None or promise.before is None:
        return {}
    return _shifted(promises, key, promise.devices, 1.0)


def under_way(promises: Mapping[Key, Promise], node: str) -> frozenset[Key]:
    """The loads that have begun there, to be asked for before a model is told to leave."""
    return frozenset(
        key for key, promise in promises.items() if key[0] == node and promise.before is not None
    )


def freed(
    promises: Mapping[Key, Promise],
    gone: Key,
    devices: Mapping[int, float],
    seen_by: frozenset[Key],
) -> dict[Key, Promise]:
    """The promises that change when a model has left, which held these MiB of those devices.

    seen_by: the loads that were under way before it was told to; who began later may have been
    told already what it left.
    """
    there = {key: promise for key, promise in promises.items() if key in seen_by}
    return _shifted(there, gone, devices, 1.0)


def unloaded(
    known: FreedMemory | None,
    devices: Mapping[int, float],
    before: Mapping[int, float],
    now: float,
    epoch: int,
) -> FreedMemory:
    """Return the memory that a node has yet to report after one more unload.

    devices: index → MiB that the model held; before: index → MiB free before the unload.
    """
    if known is None or known.epoch != epoch:
        return FreedMemory(devices, before, devices, now, epoch=epoch)
    both = {
        index: known.devices.get(index, 0.0) + devices.get(index, 0.0)
        for index in {*known.devices, *devices}
    }
    return msgspec.structs.replace(
        known,
        devices=both,
        before={**before, **known.before},
        left={index: known.left.get(index, 0.0) + devices.get(index, 0.0) for index in both},
        unloaded=now,
    )


def reported(
    known: FreedMemory, free: Mapping[int, float], now: float, epoch: int
) -> FreedMemory | None:
    """Return what a node has yet to report after a report of `free` MiB; None: nothing any more.

    A load that takes memory meanwhile hides some of it, but not for long.
    """
    left = {
        index: max(0.0, mb - max(0.0, free.get(index, 0.0) - known.before.get(index, 0.0)))
        for index, mb in known.devices.items()
    }
    risen = now if sum(left.values()) < sum(known.left.values()) else known.risen
    if (
        epoch != known.epoch
        or all(left[index] <= ROUNDED_OFF * mb for index, mb in known.devices.items())
        or now - known.unloaded > NEVER_REPORTED
        or (risen is not None and now - max(risen, known.unloaded) > PARTLY_REPORTED)
    ):
        return None
    return msgspec.structs.replace(known, left=left, risen=risen)


def _shifted(
    promises: Mapping[Key, Promise], key: Key, devices: Mapping[int, float], sign: float
) -> dict[Key, Promise]:
    changed = {}
    for other, promise in promises.items():
        if other[0] == key[0] and other != key and promise.before is not None:
            before = {
                index: mb + sign * devices.get(index, 0.0) for index, mb in promise.before.items()
            }
            if before != promise.before:
                changed[other] = msgspec.structs.replace(promise, before=before)
    return changed
