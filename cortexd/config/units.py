"""Durations and sizes as people write them: "500ms", "10s", "30m", "64MiB"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER_UNIT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


class Bound(NamedTuple):
    """Annotates a number that may not be less, or (`is_open`) must be more."""

    least: float
    is_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether that is allowed."""
        return value > self.least if self.is_open else value >= self.least

    def __str__(self) -> str:
        return f"more than {self.least}" if self.is_open else f"{self.least} or more"


class Duration(float):
    """Seconds, never negative."""

    most: Final = 10_000 * 86400.0  # more than that is a slip, and too much for some timers

    allowed = 'a duration with a unit, like "500ms", "10s" or "30m"'

    @classmethod
    def parse(cls, text: object) -> Duration:
        """ "10s" → 10.0. Raises ValueError with what is allowed."""
        return cls(_parse(text, _SECONDS, cls))

    def __str__(self) -> str:
        for unit in ("h", "m", "s"):
            if self >= _SECONDS[unit] and self % _SECONDS[unit] == 0:
                return f"{self / _SECONDS[unit]:g}{unit}"
        return f"{self * 1000:g}ms" if self else "0s"


class AutoDuration(Duration):
    """Seconds, or whatever fits: `is_auto`."""

    allowed = f'"auto", or {Duration.allowed}'

    @classmethod
    def parse(cls, text: object) -> AutoDuration:
        """ "auto", or as a Duration. Raises ValueError with what is allowed."""
        return cls(-1) if text == "auto" else cls(_parse(text, _SECONDS, cls))

    @property
    def is_auto(self) -> bool:
        """Whether it was left to us."""
        return self < 0

    def __str__(self) -> str:
        return "auto" if self.is_auto else super().__str__()


class Size(int):
    """Bytes, never negative."""

    most: Final = 1 << 50

    allowed = 'a size with a unit, like "512KiB", "64MiB" or "1GiB"'

    @classmethod
    def parse(cls, text: object) -> Size:
        """ "64MiB" → 67108864. Raises ValueError with what is allowed."""
        return cls(_parse(text, _BYTES, cls))

    def __str__(self) -> str:
        for unit in ("GiB", "MiB", "KiB"):
            if self >= _BYTES[unit] and self % _BYTES[unit] == 0:
                return f"{self // _BYTES[unit]}{unit}"
        return f"{int(self)}B"


# What most numbers in a configuration are.
Count = Annotated[int, Bound(1)]
Amount = Annotated[int, Bound(0)]  # of MiB, of attempts: none is fine
Wait = Annotated[Duration, Bound(0, is_open=True)]


def _parse(text: object, units: Mapping[str, float], kind: Any) -> float:
    found = _NUMBER_UNIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[2] not in units:
        raise ValueError(f"expected {kind.allowed}")
    amount = float(found[1]) * units[found[2]]
    if amount > kind.most:
        raise ValueError(f"expected at most {kind(kind.most)}")
    return amount
