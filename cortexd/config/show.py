"""The configuration as it is in effect: every key, its value, and where that came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import tomlkit

from cortexd.config import gateway
from cortexd.config.lines import KeyPath
from cortexd.config.secrets import secret_file, variable
from cortexd.config.source import Loaded, Origin, spelt
from cortexd.config.units import Duration, Size

MASK: Final = "********"

_SECRET: Final = re.compile(r"token|secret|passw|api_?key", re.IGNORECASE)


class Setting(NamedTuple):
    """One key. `value`: as TOML would have it; None: unset."""

    key: KeyPath
    value: Any
    origin: Origin


def settings(loaded: Loaded[Any], environ: Mapping[str, str]) -> list[Setting]:
    """Every key there is, in the order of the documentation; what is secret is masked."""
    found = [
        Setting(key, value, loaded.source.origin(key)) for key, value in _walk((), loaded.value)
    ]
    if isinstance(loaded.value, gateway.Config):
        for number, node in enumerate(loaded.value.neurons):
            if origin := _token_of(node, loaded.source.path.parent, environ):
                found.append(Setting(("neurons", number, "token"), MASK, origin))
    return found


def as_toml(found: list[Setting]) -> str:
    """A file that means the same. Each key is followed by where its value came from."""
    arrays = {setting.key[0] for setting in found if len(setting.key) > 2}
    tables: dict[KeyPath, list[Setting]] = {}
    for setting in found:
        tables.setdefault(setting.key[:-1], []).append(setting)
    lines: list[str] = []
    for table, inside in tables.items():
        name = spelt(table[:1])
        lines += ["", f"[[{name}]]" if table[0] in arrays else f"[{name}]"]
        for key, value, origin in inside:
            said = tomlkit.key(str(key[-1])).as_string()
            if value is None:
                said = f"# {said} is unset"
            elif key[-1] == "token" and value == MASK:  # no key of the file: only ever seen here
                said = f"# the token is {MASK}"
            else:
                said += f" = {_spelt_value(value)}"
            if table == ("catalogue",) and value is not None:
                said = f"# {said}"  # its models stand below
            lines.append(f"{said:<40} # {origin}")
    return "\n".join(lines[1:]) + "\n"


def as_json(found: list[Setting]) -> list[dict[str, Any]]:
    """`key`, `value`, `source` (default, file or environment), and which file, line or variable."""
    return [
        {
            "key": spelt(key),
            "value": value,
            "source": "environment" if origin.variable else "file" if origin.file else "default",
            "file": str(origin.file) if origin.file else None,
            "line": origin.line,
            "variable": origin.variable,
        }
        for key, value, origin in found
    ]


def _walk(key: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    if len(key) < 2 and isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _walk((*key, name), getattr(value, name))
    elif len(key) == 1 and isinstance(value, tuple):
        for number, each in enumerate(value):
            for name in each.__struct_fields__:
                yield (*key, number, name), plain(name, getattr(each, name))
    elif len(key) == 1 and isinstance(value, dict):
        for name, each in value.items():
            yield (*key, name), plain(name, each)
    else:
        yield key, plain(str(key[-1]), value)


def plain(name: str, value: Any) -> Any:
    """The value of the key of that name as TOML would have it."""
    if isinstance(value, msgspec.Struct):
        named = msgspec.structs.asdict(value).items()
        return {key: each for key, each in named if each is not None}
    if isinstance(value, dict):
        return {key: plain(key, each) for key, each in value.items()}
    if isinstance(value, Duration | Size):
        return str(value)
    if isinstance(value, str) and _SECRET.search(name) and not name.endswith("_file"):
        return MASK
    return list(value) if isinstance(value, tuple) else value


def _spelt_value(value: Any) -> str:
    item = tomlkit.item(value)
    if isinstance(value, dict):
        item = tomlkit.inline_table()
        item.update(value)
    return str(item.as_string())


def _token_of(node: gateway.Neuron, base: Path, environ: Mapping[str, str]) -> Origin | None:
    if (name := variable(node.name)) in environ:
        return Origin(variable=name)
    return Origin(secret_file(node.token_file, base, environ)) if node.token_file else None
