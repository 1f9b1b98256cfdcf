"""A configuration file is edited for its owner: one `[[neurons]]` table more or less.

Only that table's lines change. Comments, order, owner and mode stay, and a file that `check` would
refuse is never written.
"""

from __future__ import annotations

import codecs
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomlkit

from cortexd.config.check import load_gateway
from cortexd.config.decode import did_you_mean, quoted
from cortexd.config.gateway import Config
from cortexd.config.lines import key_lines
from cortexd.config.source import ConfigError, Mistake


class CantEdit(Exception):
    """Nothing was changed; the message says why, and what to do instead."""


def add_neuron(
    path: Path,
    neuron: Mapping[str, Any],
    environ: Mapping[str, str],
    confirm: Callable[[Config], None] | None = None,
) -> None:
    """Add a node after those that are there, or else at the end of the file.

    confirm: called with the new configuration before it is written; may raise CantEdit.
    Raises ConfigError for mistakes in the result, CantEdit, OSError.
    """
    text = _read(path)
    document = tomlkit.document()
    document["neurons"] = tomlkit.aot()
    document["neurons"].append(tomlkit.item(dict(neuron)))
    block = tomlkit.dumps(document).strip().split("\n")
    lines = text.split("\n")
    there = _neurons(path, text)
    if there:
        end = _end(text, len(there) - 1)
        lines[end:end] = ["", *block]
    else:
        while lines and not lines[-1]:
            lines.pop()
        lines += ["", *block, ""] if lines else [*block, ""]
    _replace(path, "\n".join(lines), [*there, dict(neuron)], environ, confirm)


def remove_neuron(path: Path, name: str, environ: Mapping[str, str]) -> None:
    """Take its table out, with the comments in it.

    Raises ConfigError for what is wrong with the result (a model may be pinned to it), CantEdit,
    OSError.
    """
    text = _read(path)
    there = _neurons(path, text)
    names = [each.get("name") for each in there]
    if name not in names:
        known = [str(each) for each in names]
        raise CantEdit(
            f"no neuron is called {quoted(name)}{did_you_mean(name, known)} "
            f"(there is: {', '.join(known) or 'none'})"
        )
    number = names.index(name)
    begin, end = key_lines(text)["neurons", number] - 1, _end(text, number)
    lines = text.split("\n")
    if end < len(lines) - 1 and not lines[end].strip():
        end += 1  # the blank line behind it
    del lines[begin:end]
    while len(lines) > begin and lines[-2:] == ["", ""]:  # it was the last thing in the file
        lines.pop()
    _replace(path, "\n".join(lines), there[:number] + there[number + 1 :], environ)


def _read(path: Path) -> str:
    """Without a mark at its begin, lines ended as tomllib likes them; `_replace` puts both back."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CantEdit(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(path, [Mistake("", f"not valid TOML: {error}")]) from None


def _neurons(path: Path, text: str) -> list[dict[str, Any]]:
    """What the file has; every element's header must be on a line of its own."""
    there = _parsed(path, text).get("neurons", [])
    if not there:
        return []
    line = text.split("\n")[key_lines(text)["neurons",] - 1]
    if not isinstance(there, list) or not line.lstrip().startswith("[["):
        raise CantEdit(f"{path}: write `neurons` as [[neurons]] tables, or edit it by hand")
    return there


def _end(text: str, number: int) -> int:
    """The line (from 0) behind an element: a comment that follows a blank line is no longer its."""
    own = ("neurons", number)
    at = key_lines(text)
    begin = at[own]
    lines = text.split("\n")
    following = [line for key, line in at.items() if line > begin and key[:2] != own]
    end = min(following, default=len(lines) + 1) - 1
    while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
        end -= 1
    while end < len(lines) and lines[end].lstrip().startswith("#"):
        end += 1
    return end


def _replace(
    path: Path,
    text: str,
    neurons: list[dict[str, Any]],
    environ: Mapping[str, str],
    confirm: Callable[[Config], None] | None = None,
) -> None:
    """Put the text in the file's place, whole or not at all, once it is found to be good."""
    file = path.resolve()  # a link stays one
    before = file.read_bytes()
    returns = before.count(b"\r\n")
    if returns and returns != before.count(b"\n"):
        raise CantEdit(f"{path} ends some lines with CR LF and some with LF; make them all alike")
    expected = _parsed(path, _read(file)) | {"neurons": neurons}
    if not neurons:
        del expected["neurons"]
    status = file.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
            opened.write(mark + (text.replace("\n", "\r\n") if returns else text).encode())
            os.fchmod(descriptor, status.st_mode & 0o7777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, status.st_uid, status.st_gid)
            opened.flush()
            os.fsync(descriptor)
        try:
            config = load_gateway(new, environ)
        except ConfigError as error:
            raise error.named(new, path) from None
        if _parsed(path, text) != expected:
            raise CantEdit(f"{path} is written so that it can't be edited safely; do it by hand")
        if confirm is not None:
            confirm(config)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
