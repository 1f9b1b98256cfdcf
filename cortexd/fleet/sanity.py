"""What a node says that can't be true, taken out before anything believes it.

A poll fails only when /models can't be read at all: no answer, no JSON, over `MAX_BODY`, a field
that must be there missing or of another type. Whatever can be read is worth serving from; what
is wrong in it is ignored as narrowly as it can be, and the operator is told.

    what                                                      becomes
    --------------------------------------------------------  -------------------------------------
    /health that can't be read                                load and memory readings grow old
    /discovery that can't be read                             nothing new is placed there
    an id that is empty, over 512 characters, not printable   the entry is dropped
    an id or a device for the second time                     the entry is dropped
    over 1000 models, 64 devices, 64 words in a list          the others are dropped, unloaded first
    over 4096 models that could be loaded                     the field is absent
    quants that are too many, too long or not printable       absent: any quant could be loaded
    a device below 0, from 64 on, or that is not described    the entry is dropped
    a described device of an impossible size                  the device is dropped
    a number below its least or above its most, NaN           the field is absent
    memory of more than 1.1 times what the devices have       the field is absent
    a status that we do not know                              `unknown`; no complaint
    text over 400 characters or not printable                 made plain and cut; no complaint
    another hostname than before                              a line in the log; it may be right
    other order, other values that can be true                nothing

A complaint says what kind of thing is wrong where; ids, which may change with every poll, stand
beside it. So there are only as many complaints as there are rules here, and a line is logged when
one comes up, not when another model is concerned too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cortexd.fleet.anomalies import (
    MAX_DEVICES,
    MAX_MEMORY,
    MAX_MODELS,
    MAX_QUANT,
    MAX_WORDS,
    WRONG,
    Anomalies,
    and_more,
    is_id,
)
from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Nonsense
from cortexd.wire.neuron import (
    MAX_LOADABLE,
    UNLOADED,
    Activation,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    Health,
    Loadable,
    Model,
    plain,
)

SLACK: Final = 1.1  # a node may count MB where the wire says MiB, or round

# Seconds for which a complaint stands after it was last made: a node that errs now and then is one
# line, not two for every time.
STANDS_FOR: Final = 60.0
MAX_SAID: Final = 8  # complaints in one line


def sane(seen: Observation, hardware: Discovery | None) -> tuple[Observation, dict[str, str]]:
    """The observation without what can't be true, and what was wrong: complaint → where, in words.

    hardware: what the node was known to have; what is described in `seen` counts instead.
    A failed poll is no nonsense, and says nothing but why it failed.
    """
    if seen.models is None:
        failure = plain(seen.failure or "") or "no answer"
        return Observation(seen.sent, seen.received, failure=failure), {}
    anomalies = Anomalies()
    if seen.health_failure is not None:
        anomalies.note("/health: no usable answer", plain(seen.health_failure))
    if seen.discovery_failure is not None:
        anomalies.note(
            "/discovery: no usable answer, so nothing new is placed there",
            plain(seen.discovery_failure),
        )
    discovery = seen.discovery and _discovery(seen.discovery, anomalies)
    sizes = {device.index: device for device in (discovery or hardware or _NOTHING).devices}
    models = _models(seen.models, sizes, anomalies)
    health = seen.health and _health(seen.health, sizes, anomalies)
    if models is seen.models and health is seen.health and discovery is seen.discovery:
        return seen, anomalies.in_words()
    return (
        msgspec.structs.replace(seen, models=models, health=health, discovery=discovery),
        anomalies.in_words(),
    )


def standing(
    before: Mapping[str, Nonsense], complaints: Mapping[str, str], seen: Observation
) -> Mapping[str, Nonsense]:
    """The complaints about a node that stand after a poll; the same mapping when there are none.

    A complaint about a description stands until it is asked for again.
    """
    if seen.models is None or not (complaints or before):
        return before
    is_asked = seen.discovery is not None or seen.discovery_failure is not None
    kept = {
        complaint: known
        for complaint, known in before.items()
        if (
            not is_asked
            if complaint.startswith("/discovery")
            else seen.received - known.at < STANDS_FOR
        )
    }
    return kept | {
        complaint: Nonsense(where, seen.received) for complaint, where in complaints.items()
    }


def in_words(nonsense: Mapping[str, Nonsense]) -> str:
    """The complaints in one line, the first few of them."""
    said = [f"{it} ({known.where})" if known.where else it for it, known in nonsense.items()]
    return "; ".join(said[:MAX_SAID]) + and_more(len(said) - MAX_SAID)


_NOTHING: Final = Discovery([])


def _discovery(said: Discovery, anomalies: Anomalies) -> Discovery:
    said = anomalies.checked(said, "/discovery")
    devices = []
    for device in anomalies.indexed(said.devices, "/discovery"):
        if 0 <= device.vram_total_mb <= MAX_MEMORY:
            devices.append(anomalies.checked(device, "/discovery"))
        else:
            anomalies.note_at("/discovery: vram_total_mb can't be true", device.index)
    harnesses = said.harnesses and anomalies.words(
        said.harnesses, "/discovery: harnesses", MAX_WORDS
    )
    loadable = said.loadable and _loadable(said.loadable, anomalies)
    is_same = harnesses is said.harnesses and loadable is said.loadable
    if devices == said.devices and is_same:
        return said
    return msgspec.structs.replace(said, devices=devices, harnesses=harnesses, loadable=loadable)


def _loadable(said: list[Loadable], anomalies: Anomalies) -> list[Loadable] | None:
    """Check the list of loadable models.

    A list that is too long is dropped: a model that a cut one lacks would be taken for one without
    a file.
    """
    path = "/discovery: loadable"
    if len(said) > MAX_LOADABLE:
        anomalies.note(f"{path} has over {MAX_LOADABLE} entries, and is ignored")
        return None
    kept = anomalies.named(said, "id", path, MAX_LOADABLE)
    better = []
    for model in kept:
        if model.quants is None or _are_quants(model.quants):
            better.append(model)
        else:  # any, rather than some of them
            better.append(msgspec.structs.replace(model, quants=None))
            anomalies.note_at(
                f"{path}: quants that are too many, too long or not printable", model.id
            )
    is_same = kept is said and all(a is b for a, b in zip(better, said, strict=True))
    return said if is_same else better


def _are_quants(quants: list[str]) -> bool:
    """Return whether they can be told to people; "" is a file whose name has none."""
    return len(quants) <= MAX_WORDS and all(
        len(quant) <= MAX_QUANT and quant.isprintable() for quant in quants
    )


def _health(said: Health, sizes: Mapping[int, DeviceInfo], anomalies: Anomalies) -> Health:
    better: dict[str, Any] = {}
    if said.devices is not None:
        better["devices"] = [
            _gauges(device, sizes.get(device.index), anomalies)
            for device in anomalies.indexed(said.devices, "/health", sizes)
        ]
    if said.models is not None:
        better["models"] = [
            anomalies.checked(load, "/health", load.id)
            for load in anomalies.named(said.models, "id", "/health")
        ]
    if said.activation is not None:
        better["activation"] = _activation(said.activation, anomalies)
    checked = anomalies.checked(said, "/health")
    if all(getattr(checked, field) == value for field, value in better.items()):
        return checked
    return msgspec.structs.replace(checked, **better)


def _gauges(device: DeviceHealth, known: DeviceInfo | None, anomalies: Anomalies) -> DeviceHealth:
    device = anomalies.checked(device, "/health", device.index)
    if known is None or known.kind == _HOST:
        return device
    most = known.vram_total_mb * SLACK
    for field in ("vram_used_mb", "vram_free_mb"):
        if (getattr(device, field) or 0) > most:
            device = msgspec.structs.replace(device, **{field: None})
            anomalies.note_at(f"/health: {field} is more than the device has", device.index)
    return device


def _activation(said: Activation, anomalies: Anomalies) -> Activation:
    path = "/health: activation"
    better: dict[str, Any] = {}
    if said.in_progress is not None and not is_id(said.in_progress):
        better["in_progress"] = None
        anomalies.note_at(f"{path}: {WRONG['id']}", said.in_progress)
    for field in ("pending", "completed"):
        if words := getattr(said, field):
            better[field] = anomalies.words(words, f"{path}.{field}", MAX_MODELS)
    if said.failed:
        better["failed"] = [
            anomalies.checked(failed, path)
            for failed in anomalies.named(said.failed, "model_id", path)
        ]
    checked = anomalies.checked(said, path)
    return msgspec.structs.replace(checked, **better) if better else checked


def _models(
    said: list[Model], sizes: Mapping[int, DeviceInfo], anomalies: Anomalies
) -> list[Model]:
    if len(said) > MAX_MODELS:  # what is resident is worth more than what could be
        said = sorted(said, key=lambda info: info.status == UNLOADED)
    kept = anomalies.named(said, "id", "/models")
    better = [_model(info, sizes, anomalies) for info in kept]
    is_same = kept is said and all(a is b for a, b in zip(better, said, strict=True))
    return said if is_same else better


def _model(info: Model, sizes: Mapping[int, DeviceInfo], anomalies: Anomalies) -> Model:
    info = anomalies.checked(info, "/models", info.id)
    better: dict[str, Any] = {}
    for field in ("limit", "cost", "servable", "progress"):
        if (part := getattr(info, field)) is not None:
            checked = anomalies.checked(part, f"/models: {field}", info.id)
            if checked is not part:
                better[field] = checked
    if info.capabilities:
        capabilities = anomalies.words(info.capabilities, "/models: capabilities", MAX_WORDS)
        if capabilities is not info.capabilities:
            better["capabilities"] = capabilities
    if info.devices:
        devices = _devices(info.devices, sizes)
        if len(devices) != len(info.devices):
            better["devices"] = devices or None
            anomalies.note_at("/models: devices that it can't have, or twice", info.id)
    else:
        devices = list(sizes)
    if info.vram_used_mb and sizes:
        known = [sizes[index] for index in devices if index in sizes]
        most = sum(device.vram_total_mb for device in known) * SLACK
        if info.vram_used_mb > most and not any(device.kind == _HOST for device in known):
            better["vram_used_mb"] = None
            anomalies.note_at("/models: vram_used_mb is more than its devices have", info.id)
    return msgspec.structs.replace(info, **better) if better else info


def _devices(said: list[int], sizes: Mapping[int, DeviceInfo]) -> list[int]:
    return list(
        dict.fromkeys(
            index
            for index in said[:MAX_DEVICES]
            if 0 <= index < MAX_DEVICES and (not sizes or index in sizes)
        )
    )


# A host's memory as a device: its size may be a budget, which what runs there can be above.
_HOST: Final = "cpu"
