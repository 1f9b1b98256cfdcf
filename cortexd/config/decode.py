"""A TOML document becomes a Struct, strictly, and every mistake on the way is noted.

msgspec stops at the first mistake and lets unknown keys of a wire's Struct pass; people fix a file
once, so here the tables are walked by hand and msgspec only converts the single values.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Any, Final, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from cortexd.config.lines import KeyPath
from cortexd.config.units import AutoDuration, Duration, Size

T = TypeVar("T")

_BROKEN: Final[Any] = object()  # stands for a value that could not be made
_WORDS: Final[dict[Any, str]] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Duration: Duration.allowed,
    AutoDuration: AutoDuration.allowed,
    Size: Size.allowed,
}


class Problem(NamedTuple):
    """A mistake: the key it is at, what was found there, what is allowed ("": see found)."""

    key: KeyPath
    found: str
    allowed: str = ""


def decode(document: dict[str, Any], kind: type[T]) -> tuple[T | None, list[Problem]]:
    """The Struct and the mistakes; there is no Struct unless they are only unknown keys."""
    decoder = _Decoder()
    value = decoder.value(document, kind, ())
    return None if value is _BROKEN else value, decoder.problems


def quoted(text: str) -> str:
    """In double quotes, short, and safe for any terminal."""
    text = text if len(text) <= 80 else f"{text[:79]}…"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """`; did you mean "listen"?` when something known is like it, else nothing."""
    near = difflib.get_close_matches(found.lower(), known, n=1)
    return f"; did you mean {quoted(near[0])}?" if near else ""


def without_none(kind: Any) -> Any:
    """`str | None` → str: TOML has no null, so a None is only ever a default."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007


def is_table(kind: Any) -> bool:
    """Whether it is a Struct."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


class _Decoder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def value(self, found: Any, kind: Any, path: KeyPath) -> Any:
        kind = without_none(kind)
        origin = get_origin(kind)
        if is_table(kind):
            return self._struct(found, kind, path)
        if origin is dict:
            return self._dict(found, kind, path)
        if origin in (tuple, list):
            return self._array(found, kind, path)
        return self._scalar(found, kind, path)

    def _struct(self, found: Any, kind: type[msgspec.Struct], path: KeyPath) -> Any:
        if not isinstance(found, dict):
            return self._mismatch(found, "a table", path)
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in found.keys() - fields.keys():
            hint = did_you_mean(key, fields)
            self._note((*path, key), f"unknown key{hint}", ", ".join(sorted(fields)))
        values = {}
        for key, field in fields.items():
            if key in found:
                values[field.name] = self.value(found[key], field.type, (*path, key))
            elif field.required:
                values[field.name] = self._note((*path, key), "missing", _words(field.type))
        if any(value is _BROKEN for value in values.values()):
            return _BROKEN
        try:
            return kind(**values)
        except ValueError as error:  # from __post_init__
            return self._note(path, str(error))

    def _dict(self, found: Any, kind: Any, path: KeyPath) -> Any:
        if not isinstance(found, dict):
            return self._mismatch(found, "a table", path)
        _, inner = get_args(kind)
        values = {key: self.value(each, inner, (*path, key)) for key, each in found.items()}
        return _BROKEN if any(value is _BROKEN for value in values.values()) else values

    def _array(self, found: Any, kind: Any, path: KeyPath) -> Any:
        inner = get_args(kind)[0]
        if not isinstance(found, list):
            return self._mismatch(found, _words(kind), path)
        values = [self.value(each, inner, (*path, i)) for i, each in enumerate(found)]
        return _BROKEN if any(value is _BROKEN for value in values) else get_origin(kind)(values)

    def _scalar(self, found: Any, kind: Any, path: KeyPath) -> Any:
        try:
            value = msgspec.convert(found, kind, dec_hook=lambda unit, text: unit.parse(text))
        except msgspec.ValidationError as error:
            return self._mismatch(found, _words(kind) or str(error), path)
        if isinstance(value, float) and not math.isfinite(value):
            return self._mismatch(found, "a finite number", path)
        return value

    def _mismatch(self, found: Any, allowed: str, path: KeyPath) -> Any:
        return self._note(path, f"found {_shown(found)}", allowed)

    def _note(self, path: KeyPath, found: str, allowed: str = "") -> Any:
        self.problems.append(Problem(path, found, allowed))
        return _BROKEN


def _words(kind: Any) -> str:
    """What a type allows, for people; "" when only msgspec can say it."""
    kind = without_none(kind)
    if get_origin(kind) in (Union, UnionType):
        kinds = [each for each in get_args(kind) if each is not int or float not in get_args(kind)]
        return " or ".join(_words(each) for each in kinds)
    if get_origin(kind) in (tuple, list):
        inner = get_args(kind)[0]
        return "an array of [[tables]]" if is_table(inner) else f"an array, each {_words(inner)}"
    if is_table(kind) or get_origin(kind) is dict:
        return "a table"
    return _WORDS.get(kind, "")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list) else "a date or time"
