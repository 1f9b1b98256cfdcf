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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from cortexd.fleet.observe import Observation
from cortexd.fleet.snapshot import Nonsense
from cortexd.wire.neuron import (
    MAX_TEXT,
    UNLOADED,
    Activation,
    Cost,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    FailedActivation,
    Health,
    Limit,
    Loadable,
    Model,
    ModelLoad,
    Progress,
    Servable,
    plain,
)

MAX_ID: Final = 512  # characters: a longer model name is refused at the door, so it can't be asked
MAX_MODELS: Final = 1000  # of one node; each is a series of the metrics and a line of the list
MAX_DEVICES: Final = 64  # of one node; the largest machines have 16
MAX_WORDS: Final = 64  # capabilities, harnesses, quants of one model
MAX_LOADABLE: Final = 4096  # models that a node could load, whose files have three names each
MAX_MEMORY: Final = 64 * 1024 * 1024  # MiB, so 64 TiB: far above any host's
MAX_COUNT: Final = 1_000_000  # requests on one model at a time
MAX_TOTAL: Final = 2**53  # of what is only ever counted up: exact in everybody's JSON
MAX_TOKENS: Final = 2**31 - 1  # of a context: a thousand times what there is
MAX_PRICE: Final = 1_000_000  # per million tokens: one a token
MAX_UPTIME: Final = 100 * 365 * 86400.0  # seconds, so 100 years
SLACK: Final = 1.1  # a node may count MB where the wire says MiB, or round

# Seconds for which a complaint stands after it was last made: a node that errs now and then is one
# line, not two for every time.
STANDS_FOR: Final = 60.0
MAX_SAID: Final = 8  # complaints in one line
MAX_SHOWN: Final = 3  # ids beside a complaint
MAX_SHOWN_ID: Final = 60  # characters of each

_RANGES: Final[dict[type, tuple[tuple[str, float, float], ...]]] = {
    Discovery: (("max_prompt_tokens", 0, MAX_TOKENS),),
    Health: (("uptime_secs", 0, MAX_UPTIME),),
    DeviceHealth: (
        ("vram_used_mb", 0, MAX_MEMORY),
        ("vram_free_mb", 0, MAX_MEMORY),
        ("utilization_pct", 0, 100),
        ("temp_c", -100, 200),
    ),
    ModelLoad: (
        ("in_flight", 0, MAX_COUNT),
        ("queue_depth", 0, MAX_COUNT),
        ("max_in_flight", 0, MAX_COUNT),
        ("max_queue_depth", 0, MAX_COUNT),
        ("rejected_queue_full", 0, MAX_TOTAL),
        ("rejected_timeout", 0, MAX_TOTAL),
        ("tok_s_prefill", 0, MAX_TOTAL),
        ("tok_s_decode", 0, MAX_TOTAL),
    ),
    Model: (("vram_used_mb", 0, MAX_MEMORY),),
    Limit: (("context", 0, MAX_TOKENS), ("input", 0, MAX_TOKENS), ("output", 0, MAX_TOKENS)),
    Cost: (("input", 0, MAX_PRICE), ("output", 0, MAX_PRICE)),
    Progress: (("fraction", 0, 1),),
}
_TEXTS: Final[dict[type, tuple[str, ...]]] = {
    Discovery: (
        "hostname",
        "os",
        "kernel",
        "cuda_version",
        "driver_version",
        "cuda_unavailable_reason",
        "loadable_version",
    ),
    Health: ("loadable_version",),
    DeviceInfo: ("name", "compute_capability", "kind"),
    Activation: ("state",),
    FailedActivation: ("error",),
    Model: ("status", "harness", "error"),
    Servable: ("reason", "detail"),
    Progress: ("stage",),
}

S = TypeVar("S", bound=msgspec.Struct)


def sane(seen: Observation, hardware: Discovery | None) -> tuple[Observation, dict[str, str]]:
    """The observation without what can't be true, and what was wrong: complaint → where, in words.

    hardware: what the node was known to have; what is described in `seen` counts instead.
    A failed poll is no nonsense, and says nothing but why it failed.
    """
    if seen.models is None:
        failure = plain(seen.failure or "") or "no answer"
        return Observation(seen.sent, seen.received, failure=failure), {}
    doubts = _Doubts()
    if seen.health_failure is not None:
        doubts.note("/health: no usable answer", plain(seen.health_failure))
    if seen.discovery_failure is not None:
        doubts.note(
            "/discovery: no usable answer, so nothing new is placed there",
            plain(seen.discovery_failure),
        )
    discovery = seen.discovery and _discovery(seen.discovery, doubts)
    sizes = {device.index: device for device in (discovery or hardware or _NOTHING).devices}
    models = _models(seen.models, sizes, doubts)
    health = seen.health and _health(seen.health, sizes, doubts)
    if models is seen.models and health is seen.health and discovery is seen.discovery:
        return seen, doubts.in_words()
    return (
        msgspec.structs.replace(seen, models=models, health=health, discovery=discovery),
        doubts.in_words(),
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
    return "; ".join(said[:MAX_SAID]) + _more(len(said) - MAX_SAID)


_NOTHING: Final = Discovery([])


class _Doubts:
    """Collects what is wrong with one observation."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {}

    def note(self, complaint: str, where: str = "") -> None:
        self._found.setdefault(complaint, set()).add(where)

    def note_at(self, complaint: str, key: str | int | None) -> None:
        """The same at a model's id or a device's index."""
        self.note(complaint, "" if key is None else _quoted(key))

    def in_words(self) -> dict[str, str]:
        """The same whatever order it was found in."""
        return {complaint: _listed(where) for complaint, where in sorted(self._found.items())}

    def checked(self, thing: S, path: str, key: str | int | None = None) -> S:
        """`thing` with its numbers within their bounds and its texts plain."""
        better: dict[str, Any] = {}
        for field, least, most in _RANGES.get(type(thing), ()):
            number = getattr(thing, field)
            if number is not None and not least <= number <= most:  # NaN is never within
                better[field] = None
                self.note_at(f"{path}: {field} can't be true", key)
        for field in _TEXTS.get(type(thing), ()):
            text = getattr(thing, field)
            if text is not None and (
                len(text) > MAX_TEXT or text[-1:] == "." or not text.isprintable()
            ):
                better[field] = plain(text)
        return msgspec.structs.replace(thing, **better) if better else thing

    def named(
        self, things: Sequence[S], field: str, path: str, most: int = MAX_MODELS
    ) -> Sequence[S]:
        """Those with an id that can be one, each once."""
        return self._unique(things, field, path, "id", _is_id, most)

    def indexed(
        self, things: Sequence[S], path: str, known: Mapping[int, DeviceInfo] | None = None
    ) -> Sequence[S]:
        """Those on a device that can be one, each once; `known`: the ones that are described."""

        def is_device(index: int) -> bool:
            return 0 <= index < MAX_DEVICES and (not known or index in known)

        return self._unique(things, "index", path, "device", is_device, MAX_DEVICES)

    def words(self, words: list[str], path: str, most: int) -> list[str]:
        """Those that can be ids, each once."""
        kept = list(dict.fromkeys(word for word in words[:most] if _is_id(word)))
        if len(kept) == len(words):
            return words
        self.note(f"{path} holds words that are empty, too long, not printable or too many")
        return kept

    def _unique(
        self,
        things: Sequence[S],
        field: str,
        path: str,
        what: str,
        is_good: Callable[[Any], bool],
        most: int,
    ) -> Sequence[S]:
        found: dict[object, S] = {}
        for thing in things[:most]:
            key = getattr(thing, field)
            if not is_good(key):
                self.note_at(f"{path}: {_WRONG[what]}", key)
            elif key in found:
                self.note_at(f"{path}: the same {what} twice, the first one counts", key)
            else:
                found[key] = thing
        if len(things) > most:
            self.note(f"{path}: over {most} entries, the others are ignored")
        return things if len(found) == len(things) else list(found.values())


_WRONG: Final = {
    "id": f"an id that is empty, over {MAX_ID} characters or not printable",
    "device": "a device that it can't have",
}


def _discovery(said: Discovery, doubts: _Doubts) -> Discovery:
    said = doubts.checked(said, "/discovery")
    devices = []
    for device in doubts.indexed(said.devices, "/discovery"):
        if 0 <= device.vram_total_mb <= MAX_MEMORY:
            devices.append(doubts.checked(device, "/discovery"))
        else:
            doubts.note_at("/discovery: vram_total_mb can't be true", device.index)
    harnesses = said.harnesses and doubts.words(said.harnesses, "/discovery: harnesses", MAX_WORDS)
    loadable = said.loadable and _loadable(said.loadable, doubts)
    is_same = harnesses is said.harnesses and loadable is said.loadable
    if devices == said.devices and is_same:
        return said
    return msgspec.structs.replace(said, devices=devices, harnesses=harnesses, loadable=loadable)


def _loadable(said: list[Loadable], doubts: _Doubts) -> list[Loadable] | None:
    """Check the list of loadable models.

    A list that is too long is dropped: a model that a cut one lacks would be taken for one without
    a file.
    """
    path = "/discovery: loadable"
    if len(said) > MAX_LOADABLE:
        doubts.note(f"{path} has over {MAX_LOADABLE} entries, and is ignored")
        return None
    kept = doubts.named(said, "id", path, MAX_LOADABLE)
    better = [
        model
        if model.quants is None or len(model.quants) <= MAX_WORDS
        else msgspec.structs.replace(model, quants=None)  # any, rather than some of them
        for model in kept
    ]
    is_same = kept is said and all(a is b for a, b in zip(better, said, strict=True))
    return said if is_same else better


def _health(said: Health, sizes: Mapping[int, DeviceInfo], doubts: _Doubts) -> Health:
    better: dict[str, Any] = {}
    if said.devices is not None:
        better["devices"] = [
            _gauges(device, sizes.get(device.index), doubts)
            for device in doubts.indexed(said.devices, "/health", sizes)
        ]
    if said.models is not None:
        better["models"] = [
            doubts.checked(load, "/health", load.id)
            for load in doubts.named(said.models, "id", "/health")
        ]
    if said.activation is not None:
        better["activation"] = _activation(said.activation, doubts)
    checked = doubts.checked(said, "/health")
    if all(getattr(checked, field) == value for field, value in better.items()):
        return checked
    return msgspec.structs.replace(checked, **better)


def _gauges(device: DeviceHealth, known: DeviceInfo | None, doubts: _Doubts) -> DeviceHealth:
    device = doubts.checked(device, "/health", device.index)
    if known is None or known.kind == _HOST:
        return device
    most = known.vram_total_mb * SLACK
    for field in ("vram_used_mb", "vram_free_mb"):
        if (getattr(device, field) or 0) > most:
            device = msgspec.structs.replace(device, **{field: None})
            doubts.note_at(f"/health: {field} is more than the device has", device.index)
    return device


def _activation(said: Activation, doubts: _Doubts) -> Activation:
    path = "/health: activation"
    better: dict[str, Any] = {}
    if said.in_progress is not None and not _is_id(said.in_progress):
        better["in_progress"] = None
        doubts.note_at(f"{path}: {_WRONG['id']}", said.in_progress)
    for field in ("pending", "completed"):
        if words := getattr(said, field):
            better[field] = doubts.words(words, f"{path}.{field}", MAX_MODELS)
    if said.failed:
        better["failed"] = [
            doubts.checked(failed, path) for failed in doubts.named(said.failed, "model_id", path)
        ]
    checked = doubts.checked(said, path)
    return msgspec.structs.replace(checked, **better) if better else checked


def _models(said: list[Model], sizes: Mapping[int, DeviceInfo], doubts: _Doubts) -> list[Model]:
    if len(said) > MAX_MODELS:  # what is resident is worth more than what could be
        said = sorted(said, key=lambda info: info.status == UNLOADED)
    kept = doubts.named(said, "id", "/models")
    better = [_model(info, sizes, doubts) for info in kept]
    is_same = kept is said and all(a is b for a, b in zip(better, said, strict=True))
    return said if is_same else better


def _model(info: Model, sizes: Mapping[int, DeviceInfo], doubts: _Doubts) -> Model:
    info = doubts.checked(info, "/models", info.id)
    better: dict[str, Any] = {}
    for field in ("limit", "cost", "servable", "progress"):
        if (part := getattr(info, field)) is not None:
            checked = doubts.checked(part, f"/models: {field}", info.id)
            if checked is not part:
                better[field] = checked
    if info.capabilities:
        capabilities = doubts.words(info.capabilities, "/models: capabilities", MAX_WORDS)
        if capabilities is not info.capabilities:
            better["capabilities"] = capabilities
    if info.devices:
        devices = _devices(info.devices, sizes)
        if len(devices) != len(info.devices):
            better["devices"] = devices or None
            doubts.note_at("/models: devices that it can't have, or twice", info.id)
    else:
        devices = list(sizes)
    if info.vram_used_mb and sizes:
        known = [sizes[index] for index in devices if index in sizes]
        most = sum(device.vram_total_mb for device in known) * SLACK
        if info.vram_used_mb > most and not any(device.kind == _HOST for device in known):
            better["vram_used_mb"] = None
            doubts.note_at("/models: vram_used_mb is more than its devices have", info.id)
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


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isprintable() and not text.isspace()


def _quoted(key: str | int) -> str:
    if isinstance(key, str):
        return repr(key if len(key) <= MAX_SHOWN_ID else key[: MAX_SHOWN_ID - 1] + "…")
    return f"device {key}" if abs(key) <= MAX_MEMORY else "a device"


def _listed(where: set[str]) -> str:
    shown = sorted(where - {""})
    return ", ".join(shown[:MAX_SHOWN]) + _more(len(shown) - MAX_SHOWN)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
