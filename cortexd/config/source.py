"""TOML and environment become a frozen Struct, or a ConfigError that names every mistake."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from cortexd.config.decode import Problem, decode, is_table, quoted, without_none
from cortexd.config.lines import KeyPath, key_lines

T = TypeVar("T", bound=msgspec.Struct)

PREFIX: Final = "CORTEX_"  # of the environment variables that override a key

_TOML_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong. `path`: the key, like `neurons[1].endpoint`; "" is the file."""

    path: str
    text: str
    line: int | None = None
    variable: str | None = None


class ConfigError(Exception):
    """A configuration that can't be used. Its text has one line for every mistake."""

    def __init__(self, file: Path, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: (mistake.line or 0, mistake.path))
        super().__init__("\n".join(_told(file, mistake) for mistake in self.mistakes))


Check = Callable[[T], Iterable[Problem]]


def load(
    path: Path,
    kind: type[T],
    *,
    check: Check[T] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> T:
    """Read a file, lay the environment over it, and check the whole.

    check: finds what can't be seen at one key alone. Raises ConfigError.
    """
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        said = _TOML_LINE.sub("", str(error))
        mistake = Mistake("", f"not valid TOML: {said}", int(found[1]) if found else None)
        raise ConfigError(path, [mistake]) from None
    variables = _lay_over(document, kind, environ)
    value, problems = decode(document, kind)
    if value is not None and check is not None:
        problems.extend(check(value))
    if value is None or problems:
        raise ConfigError(path, _mistakes(problems, variables, key_lines(text)))
    return value


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(path, [Mistake("", f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, [Mistake("", f"not UTF-8 at byte {error.start}")]) from None


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
            held[key] = _meant(text, without_none(_kinds(table).get(key)))
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


def _mistakes(
    problems: Iterable[Problem], variables: Mapping[KeyPath, str], lines: Mapping[KeyPath, int]
) -> Iterable[Mistake]:
    for key, found, allowed in problems:
        text = f"{found} (allowed: {allowed})" if allowed else found
        variable = variables.get(key[:2])
        # What is missing has the line of the table that it is missing from.
        held = (lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines)
        yield Mistake(_spelt(key), text, None if variable else next(held, None), variable)


def _spelt(key: KeyPath) -> str:
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
    where = mistake.variable or (f"{file}:{mistake.line}" if mistake.line else str(file))
    return ": ".join(filter(None, (where, mistake.path, mistake.text)))
