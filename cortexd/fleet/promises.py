"""What loads that overlap mean for each other's promises.

`Promise.before` is what was free when a load began. When another one begins beside it, that is free
no more, and the second promise may be gone before the first load has taken all of its memory. When
a model leaves, more is free; without that, who has made room would not find it before all loads
there have ended, and would send away still more.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortexd.fleet.snapshot import Promise

Key = tuple[str, str]  # (node, model), as in the ledger


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
