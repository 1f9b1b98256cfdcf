"""TOML and environment become a frozen Struct, or a ConfigError that names every mistake."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import msgspec

from cortexd.config.decode import (
    Problem,
    bare,
    decode,
    did_you_mean,
    is_table,
    quoted,
    shown,
    sound,
)
from cortexd.config.files import located, reason
from cortexd.config.key_hints import syntax_hint
from cortexd.config.lines import KeyPath, key_lines

T = TypeVar("T", bound=msgspec.Struct)

PREFIX: Final = "CORTEX_"  # of the environment variables that override a key

_TOML_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong. `path`: the key, like `neurons[1].endpoint`; "" is the file.

    file: None is the one that was asked for.
    """

    path: str
    text: str
    line: int | None = None
    variable: str | None = None
    file: Path | None = None


class ConfigError(Exception):
    """A configuration that can't be used. Its text has one line for every mistake."""

    def __init__(self, file: Path, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(
            mistakes,
            key=lambda mistake: (str(mistake.file or ""), mistake.line or 0, mistake.path),
        )
        super().__init__("\n".join(_told(file, mistake) for mistake in self.mistakes))

    def named(self, draft: Path, file: Path) -> ConfigError:
        """The same of a draft, as if it stood in the file already."""
        return ConfigError(
            file,
            [
                replace(mistake, text=mistake.text.replace(str(draft), str(file)))
                for mistake in self.mistakes
            ],
        )


class NoConfiguration(ConfigError):
    """No configuration was named, and none is in the usual places. places: the paths tried."""

    def __init__(self, places: Sequence[Path]) -> None:
        super().__init__(places[0], [])
        looked = " nor ".join(map(str, places))
        self.args = (
            f"There is no configuration: neither {looked} exists. Name one with --config.",
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was found: in a line of a file, or in a variable; neither: it is a default."""

    file: Path | None = None
    line: int | None = None
    variable: str | None = None

    def __str__(self) -> str:
        if self.variable or not self.file:
            return self.variable or "default"
        return f"{self.file}:{self.line}" if self.line else str(self.file)


class Text(NamedTuple):
    """One file: what it says, and on which lines."""

    file: Path
    document: dict[str, Any]
    lines: dict[KeyPath, int]


class Source:
    """What a configuration is made of: its file, the variables over it, and a second file that
    lists further elements of one of its arrays.

    document: all of them as one. Raises ConfigError where the file is no TOML.
    """

    def __init__(self, path: Path, kind: type[msgspec.Struct], environ: Mapping[str, str]) -> None:
        self.path = path
        self._main = read_text(path)
        self.document = self._main.document
        self._variables = _lay_over(self.document, kind, environ)
        self._mistakes: list[Mistake] = []
        self._further: Text | None = None
        self._array, self._first = "", 0

    def extend(self, array: str, at: KeyPath) -> None:
        """Append the elements of `array` in the file that the key `at` names; its mistakes are
        kept for `refusal`."""
        named = self._at(at)
        if not isinstance(named, str):
            return  # unset, or a mistake that decoding will find
        second = located(self.path.parent, named)
        try:
            text = read_text(second)
        except ConfigError as error:
            if error.mistakes[0].line is None:  # the file as such: the key is what is wrong
                self._mistakes += self.located(Problem(at, str(error)))
            else:
                self._mistakes += [replace(mistake, file=second) for mistake in error.mistakes]
            return
        for key in text.document.keys() - {array}:
            words = f"unknown key{did_you_mean(key, [array])} (allowed: {array})"
            line = text.lines.get((key,))
            self._mistakes.append(Mistake(spelt((key,)), words, line, file=text.file))
        ours, theirs = self.document.get(array, []), text.document.get(array, [])
        if not isinstance(theirs, list):
            line = text.lines.get((array,))
            words = f"found {shown(theirs)} (allowed: an array of [[tables]])"
            self._mistakes.append(Mistake(array, words, line, file=text.file))
        elif isinstance(ours, list):
            self.document[array] = ours + theirs
            self._further, self._array, self._first = text, array, len(ours)

    def origin(self, key: KeyPath) -> Origin:
        """Where the value of a key was found."""
        if variable := self._variables.get(key[:2]):
            return Origin(variable=variable)
        text, own = self._text(key)
        line = text.lines.get(own)
        return Origin() if line is None else Origin(text.file, line)

    def located(self, *problems: Problem) -> list[Mistake]:
        """The same with file and line."""
        return [self._located(problem) for problem in problems]

    def lines(self, problems: Iterable[Problem]) -> list[str]:
        """Return each problem as a line, in the form that ConfigError has."""
        return [_told(self.path, mistake) for mistake in self.located(*problems)]

    def refusal(self, problems: Iterable[Problem]) -> ConfigError | None:
        """All that is wrong, or None."""
        mistakes = self._mistakes + self.located(*problems)
        return ConfigError(self.path, mistakes) if mistakes else None

    def _located(self, problem: Problem) -> Mistake:
        key, found, allowed, _ = problem
        words = f"{found} (allowed: {allowed})" if allowed else found
        if variable := self._variables.get(key[:2]):
            return Mistake(spelt(key), words, variable=variable)
        text, own = self._text(key)
        # What is missing has the line of the table that it is missing from.
        held = (text.lines[own[:end]] for end in range(len(own), 0, -1) if own[:end] in text.lines)
        file = None if text is self._main else text.file
        return Mistake(spelt(own), words, next(held, None), file=file)

    def _text(self, key: KeyPath) -> tuple[Text, KeyPath]:
        """The file that a key stands in, and the key as that file has it."""
        if self._further is not None and len(key) > 1 and key[0] == self._array:
            index = cast(int, key[1])
            if index >= self._first:
                return self._further, (key[0], index - self._first, *key[2:])
        return self._main, key

    def _at(self, key: KeyPath) -> Any:
        found: Any = self.document
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        return found


Check = Callable[[T, Source], Iterable[Problem]]


class Loaded(NamedTuple, Generic[T]):
    """A configuration, and where each of its values came from."""

    value: T
    source: Source


def load(
    path: Path,
    kind: type[T],
    *,
    check: Check[T] | None = None,
    environ: Mapping[str, str] = os.environ,
    further: tuple[str, KeyPath] | None = None,
) -> Loaded[T]:
    """Read a file, lay the environment over it, and check the whole.

    check: finds what can't be seen at one key alone. further: an array, and the key that names a
    second file with more of its elements. Raises ConfigError.
    """
    source = Source(path, kind, environ)
    if further is not None:
        source.extend(*further)
    value, problems = decode(source.document, kind)
    if check is not None:
        problems += sound(check(value, source), problems)
    refusal = source.refusal(problems)
    if refusal is not None:
        raise refusal
    return Loaded(value, source)


def read_text(path: Path) -> Text:
    """One TOML file. Raises ConfigError."""
    text = _read(path)
    try:
        return Text(path, tomllib.loads(text), key_lines(text))
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        said = _TOML_LINE.sub("", str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # it says "at end of document"
        words = f"not valid TOML: {said}{syntax_hint(text, line)}"
        raise ConfigError(path, [Mistake("", words, line)]) from None
    except RecursionError:
        raise ConfigError(path, [Mistake("", "arrays or tables nest too deeply")]) from None
    except ValueError:  # tomllib leaves it to Python, which takes 4300 digits
        raise ConfigError(path, [Mistake("", "a number has far too many digits")]) from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(path, [Mistake("", f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        words = f"not UTF-8 at byte {error.start}; save the file as UTF-8"
        raise ConfigError(path, [Mistake("", words, line)]) from None
    except ValueError as error:  # a NUL in its name
        raise ConfigError(path, [Mistake("", f"can't be read: {reason(error)}")]) from None


def _lay_over(
    document: dict[str, Any], kind: type[msgspec.Struct], environ: Mapping[str, str]
) -> dict[KeyPath, str]:
    """Put the environment's values into the document; returns key → variable.

    A variable for a table that this file does not have is another program's.
    """
    variables: dict[KeyPath, str] = {}
    tables = _kinds(kind)
    for name, text in sorted(environ.items()):
        section, divider, key = name.removeprefix(PREFIX).lower().partition("__")
        table = tables.get(section)
        if not name.startswith(PREFIX) or not divider or not is_table(table):
            continue
        held = document.setdefault(section, {})
        if isinstance(held, dict):
            held[key] = _meant(text, bare(_kinds(table).get(key))[0])
            variables[section, key] = name
    return variables


def _kinds(table: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(table)}


def _meant(text: str, kind: Any) -> Any:
    """What a variable's text says where TOML would have had a value of that kind."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def spelt(key: KeyPath) -> str:
    """As people write it: `aliases."team/small"`, `neurons[1].endpoint`."""
    parts = [
        f"[{part}]"
        if isinstance(part, int)
        else part
        if _BARE_KEY.fullmatch(part)
        else quoted(part)
        for part in key
    ]
    return ".".join(parts).replace(".[", "[")


def _told(file: Path, mistake: Mistake) -> str:
    file = mistake.file or file
    where = mistake.variable or (f"{file}:{mistake.line}" if mistake.line else str(file))
    return ": ".join(filter(None, (where, mistake.path, mistake.text)))
