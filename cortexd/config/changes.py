"""What differs between two configurations, and what of it has to wait for a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.config.current import Settings
from cortexd.config.decode import quoted
from cortexd.config.gateway import Config, Neuron

# Read once, when the process starts.
AT_START: Final = frozenset({"gateway.state_dir", "logging.level", "logging.format"})

_LISTS: Final = frozenset({"neurons", "models", "aliases"})


class Changes(msgspec.Struct, frozen=True):
    """From one configuration to the next.

    keys: of single tables, like `polling.interval`, but for those under `restart`.
    entries: of the others, each in words.
    restart: keys that hold from the next start on.
    fresh: nodes that are new, or reached in another way: nothing that was known of them holds.
    gone: nodes that are not there any more.
    """

    keys: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


def changes(before: Settings, after: Settings) -> Changes:
    """What `after` changes."""
    old, new = before.config, after.config
    keys = tuple(_keys(old, new))
    were = {node.name: node for node in old.neurons}
    nodes = {node.name: node for node in new.neurons}
    fresh = frozenset(
        name
        for name, node in nodes.items()
        if not _is_same(name, were.get(name), node, before, after)
    )
    entries = (
        *_entries("neurons", were, nodes),
        *_tokens(before, after),
        *_certificates(before, after),
        *_entries("models", _by_id(old.models), _by_id(new.models)),
        *_entries("aliases", old.aliases, new.aliases),
    )
    live = tuple(key for key in keys if key not in AT_START)
    restart = tuple(key for key in keys if key in AT_START)
    return Changes(live, entries, restart, fresh, frozenset(were.keys() - nodes.keys()))


def in_use(before: Config, after: Config) -> Config:
    """`after`, but for what holds from the next start on."""
    for key in AT_START:
        table, field = key.split(".")
        kept = {field: getattr(getattr(before, table), field)}
        section = msgspec.structs.replace(getattr(after, table), **kept)
        after = msgspec.structs.replace(after, **{table: section})
    return after


def _is_same(
    name: str, was: Neuron | None, node: Neuron, before: Settings, after: Settings
) -> bool:
    return (
        was is not None
        and was.endpoint == node.endpoint
        and before.tokens.get(name) == after.tokens.get(name)
    )


def _keys(old: msgspec.Struct, new: msgspec.Struct) -> Iterator[str]:
    """`table.key` of the single tables."""
    for table in old.__struct_fields__:
        if table not in _LISTS:
            before, after = getattr(old, table), getattr(new, table)
            yield from (f"{table}.{field}" for field in _fields(before, after))


def _tokens(before: Settings, after: Settings) -> Iterator[str]:
    kept = {node.name for node in before.config.neurons} & {n.name for n in after.config.neurons}
    for name in sorted(kept):
        if before.tokens.get(name) != after.tokens.get(name):
            yield f"neurons.{quoted(name)} has another token"


def _certificates(before: Settings, after: Settings) -> Iterator[str]:
    """Yield the files that are named as before and whose content has changed."""
    old, new = before.certificates.contents, after.certificates.contents
    for file in sorted(old.keys() & new.keys()):
        if old[file] != new[file]:
            yield f"{quoted(file)} holds other certificates"


def _entries(table: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        what = f"{table}.{quoted(name)}"
        if name not in old:
            yield f"{what} added"
        elif name not in new:
            yield f"{what} removed"
        elif old[name] != new[name]:
            fields = ", ".join(_fields(old[name], new[name]))
            yield f"{what} changed" + (f": {fields}" if fields else "")


def _fields(old: Any, new: Any) -> list[str]:
    if not isinstance(old, msgspec.Struct):
        return []
    return [key for key in old.__struct_fields__ if getattr(old, key) != getattr(new, key)]


def _by_id(models: tuple[Profile, ...]) -> dict[str, Profile]:
    return {profile.id: profile for profile in models}
