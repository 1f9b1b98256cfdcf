"""A TOML document becomes a Struct, strictly, and every mistake on the way is noted.

msgspec stops at the first mistake and lets unknown keys of a wire's Struct pass; people fix a file
once, so here the tables are walked by hand and msgspec only converts the single values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

import msgspec

from cortexd.config.lines import KeyPath
from cortexd.config.nearest import nearest
from cortexd.config.units import AutoDuration, Bound, Duration, Size

T = TypeVar("T")

MOST: Final = (1 << 63) - 1  # what TOML promises to hold of a whole number

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
    """A mistake: the key it is at, what was found there, what is allowed ("": see found).

    needs: other keys that the finding rests on; it is void where one of them is wrong itself.
    """

    key: KeyPath
    found: str
    allowed: str = ""
    needs: tuple[KeyPath, ...] = ()


def decode(document: dict[str, Any], kind: type[T]) -> tuple[T, list[Problem]]:
    """Return the Struct and the mistakes.

    Where there are any, the Struct is only for further checks: a value that is wrong or missing
    is its default, or an empty one.
    """
    decoder = _Decoder()
    return cast(T, decoder.value(document, kind, ())), decoder.problems


def sound(found: Iterable[Problem], wrong: Iterable[Problem]) -> list[Problem]:
    """Return the mistakes that don't depend on a key in `wrong`."""
    keys = [problem.key for problem in wrong]

    def is_wrong(key: KeyPath) -> bool:
        return any(key[: len(each)] == each for each in keys)

    return [each for each in found if not any(map(is_wrong, (each.key, *each.needs)))]


def quoted(text: str) -> str:
    """In double quotes, short, and safe for any terminal."""
    text = text if len(text) <= 80 else f"{text[:79]}…"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """`; did you mean "listen"?` when something known is like it, else nothing."""
    near = nearest(found, known)
    return f"; did you mean {quoted(near)}?" if near is not None else ""


def without_none(kind: Any) -> Any:
    """`str | None` → str: TOML has no null, so a None is only ever a default."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    return Union[tuple(each for each in get_args(kind) if each is not NoneType)]  # noqa: UP007


def bare(kind: Any) -> tuple[Any, Bound | None]:
    """A field's type without None and what annotates it, and its bound."""
    kind = without_none(kind)
    if get_origin(kind) is not Annotated:
        return kind, None
    kind, *notes = get_args(kind)
    return kind, next(note for note in notes if isinstance(note, Bound))


def is_table(kind: Any) -> bool:
    """Whether it is a Struct."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


class _Decoder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def value(self, found: Any, kind: Any, path: KeyPath) -> Any:
        bare_kind, bound = bare(kind)
        if bound is not None:
            return self._bounded(found, bare_kind, bound, path)
        kind = bare_kind
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
                value = self.value(found[key], field.type, (*path, key))
            elif field.required:
                value = self._note((*path, key), "missing", words(field.type))
            else:
                continue
            if value is not _BROKEN:
                values[field.name] = value
            elif field.required:
                values[field.name] = _stand_in(field.type)
        return kind(**values)

    def _dict(self, found: Any, kind: Any, path: KeyPath) -> Any:
        if not isinstance(found, dict):
            return self._mismatch(found, "a table", path)
        _, inner = get_args(kind)
        values = {}
        for key, each in found.items():
            if isinstance(each, dict) and not is_table(inner):
                for parts in _leaves((key,), each):
                    meant = quoted(".".join(parts))
                    self._note((*path, *parts), f"a dot in a name; put the name in quotes: {meant}")
                continue
            value = self.value(each, inner, (*path, key))
            if value is not _BROKEN:
                values[key] = value
        return values

    def _array(self, found: Any, kind: Any, path: KeyPath) -> Any:
        inner = get_args(kind)[0]
        if not isinstance(found, list):
            return self._mismatch(found, words(kind), path)
        values = [self.value(each, inner, (*path, i)) for i, each in enumerate(found)]
        # Invalid entries keep their place: further checks refer to the others by their numbers.
        return get_origin(kind)(_stand_in(inner) if it is _BROKEN else it for it in values)

    def _bounded(self, found: Any, kind: Any, bound: Bound, path: KeyPath) -> Any:
        value = self._scalar(found, kind, path)
        if value is _BROKEN or bound.holds(value):
            return value
        return self._mismatch(found, f"{words(kind)}, {bound}", path)

    def _scalar(self, found: Any, kind: Any, path: KeyPath) -> Any:
        if is_unit(kind):
            try:
                return kind.parse(found)
            except ValueError as error:
                return self._mismatch(found, str(error).removeprefix("expected "), path)
        try:
            value = msgspec.convert(found, kind)
        except msgspec.ValidationError as error:
            return self._mismatch(found, words(kind) or str(error), path)
        if isinstance(value, float) and not math.isfinite(value):
            return self._mismatch(found, "a finite number", path)
        if isinstance(value, int) and abs(value) > MOST:
            return self._mismatch(found, f"a whole number of at most {MOST}", path)
        return value

    def _mismatch(self, found: Any, allowed: str, path: KeyPath) -> Any:
        return self._note(path, f"found {shown(found)}", allowed)

    def _note(self, path: KeyPath, found: str, allowed: str = "") -> Any:
        self.problems.append(Problem(path, found, allowed))
        return _BROKEN


def _leaves(parts: tuple[str, ...], nested: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Return the keys below `parts` that hold no table.

    TOML reads `gpt-3.5-turbo = …` as a table `gpt-3`.
    """
    for part, value in nested.items():
        if isinstance(value, dict) and value:
            yield from _leaves((*parts, part), value)
        else:
            yield (*parts, part)


def _stand_in(kind: Any) -> Any:
    """Return an empty value in place of an invalid one."""
    kind, _ = bare(kind)
    if is_table(kind):
        required = [field for field in msgspec.structs.fields(kind) if field.required]
        return kind(**{field.name: _stand_in(field.type) for field in required})
    return "" if kind is str else kind() if isinstance(kind, type) else None


def is_unit(kind: Any) -> bool:
    """Whether it is a duration or a size, which people write with a unit."""
    return isinstance(kind, type) and issubclass(kind, Duration | Size)


def words(kind: Any) -> str:
    """What a type allows, for people."""
    kind, bound = bare(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if bound is not None:
        return f"{words(kind)}, {bound}"
    if origin in (Union, UnionType):
        return " or ".join(words(each) for each in inner if each is not int or float not in inner)
    if origin is Literal:
        return " or ".join(map(quoted, inner))
    if origin in (tuple, list):
        is_tables = is_table(inner[0])
        return "an array of [[tables]]" if is_tables else f"an array, each {words(inner[0])}"
    if is_table(kind) or origin is dict:
        return "a table"
    return _WORDS[kind]


def shown(value: Any) -> str:
    """A value of a TOML document for people, in few words."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > MOST:
        return "a number beyond 64 bits"  # Python refuses to spell the longest of them
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "a table"
    return "an array" if isinstance(value, list) else "a date or time"
