"""Collects the invalid values of one report of a node, and takes them out of the report.

Here are the bounds of every number, and the form of ids and texts. `sanity` knows which parts a
report has, and how they depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from cortexd.wire.neuron import (
    MAX_TEXT,
    Activation,
    Cost,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    FailedActivation,
    Health,
    Limit,
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
MAX_QUANT: Final = 64  # characters; "UD-IQ2_XXS" has 10
MAX_MEMORY: Final = 64 * 1024 * 1024  # MiB, so 64 TiB: far above any host's
MAX_COUNT: Final = 1_000_000  # requests on one model at a time
MAX_TOTAL: Final = 2**53  # of what is only ever counted up: exact in everybody's JSON
MAX_TOKENS: Final = 2**31 - 1  # of a context: a thousand times what there is
MAX_PRICE: Final = 1_000_000  # per million tokens: one a token
MAX_UPTIME: Final = 100 * 365 * 86400.0  # seconds, so 100 years

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


class Anomalies:
    """Collects the invalid values of one observation."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {}

    def note(self, complaint: str, where: str = "") -> None:
        self._found.setdefault(complaint, set()).add(where)

    def note_at(self, complaint: str, key: str | int | None) -> None:
        """Note a complaint at a model's id or a device's index."""
        self.note(complaint, "" if key is None else _quoted(key))

    def in_words(self) -> dict[str, str]:
        """Return the complaints in words, independent of the order in which they were found."""
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
        return self._unique(things, field, path, "id", is_id, most)

    def indexed(
        self, things: Sequence[S], path: str, known: Mapping[int, DeviceInfo] | None = None
    ) -> Sequence[S]:
        """Those on a device that can be one, each once; `known`: the ones that are described."""

        def is_device(index: int) -> bool:
            return 0 <= index < MAX_DEVICES and (not known or index in known)

        return self._unique(things, "index", path, "device", is_device, MAX_DEVICES)

    def words(self, words: list[str], path: str, most: int) -> list[str]:
        """Those that can be ids, each once."""
        kept = list(dict.fromkeys(word for word in words[:most] if is_id(word)))
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
                self.note_at(f"{path}: {WRONG[what]}", key)
            elif key in found:
                self.note_at(f"{path}: the same {what} twice, the first one counts", key)
            else:
                found[key] = thing
        if len(things) > most:
            self.note(f"{path}: over {most} entries, the others are ignored")
        return things if len(found) == len(things) else list(found.values())


WRONG: Final = {
    "id": f"an id that is empty, over {MAX_ID} characters or not printable",
    "device": "a device that it can't have",
}


def is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isprintable() and not text.isspace()


def _quoted(key: str | int) -> str:
    if isinstance(key, str):
        return repr(key if len(key) <= MAX_SHOWN_ID else key[: MAX_SHOWN_ID - 1] + "…")
    return f"device {key}" if abs(key) <= MAX_MEMORY else "a device"


def _listed(where: set[str]) -> str:
    shown = sorted(where - {""})
    return ", ".join(shown[:MAX_SHOWN]) + and_more(len(shown) - MAX_SHOWN)


def and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
