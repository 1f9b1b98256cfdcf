"""Which file below the models' directories is meant by a name. Reads directories: blocks.

A name comes over the wire, so it may never lead out of these directories; what lies in them, an
operator's symlinks included, is the operator's word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cortexd.errors import MODEL_NOT_FOUND, Refusal
from cortexd.neuron.refusals import NO_SUCH_QUANT

_SUFFIX: Final = ".gguf"
# What may stand between a model's name and ".gguf" without making it another model's name.
_QUANT: Final = r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP\d\w*|BF16|FP?\d+)"
_ENDING: Final = re.compile(rf"(?:^|[-.])({_QUANT})$", re.IGNORECASE)
_PART: Final = re.compile(r"-(\d{5})-of-\d{5}$")
_PROJECTOR: Final = "mmproj"
MAX_ENTRIES: Final = 50_000  # files and folders that are scanned for models


def find(directories: Sequence[Path], name: str, quant: str | None = None) -> tuple[str, Path]:
    """The id and the file of a model that is named over the wire, as `id` or as `source:id`.

    Its file is `<id>.gguf`, `<id>-<quant>.gguf` or `<id>.<quant>.gguf`, else one in a folder
    `<id>`; of a file in parts the first. Raises Refusal: model_not_found with the names that were
    looked for, or no_such_quant with those that are there.
    """
    for model_id in dict.fromkeys((name, name.partition(":")[2] or name)):
        if found := _by_quant(directories, model_id.split("/")):
            break
    else:
        names = f"{model_id}.gguf, {model_id}-{quant or '<quant>'}.gguf, {model_id}/*.gguf"
        where = ", ".join(map(str, directories)) or "any directory: [paths] models is empty"
        raise Refusal(MODEL_NOT_FOUND, f"No file for {name!r}: looked for {names} below {where}.")
    if quant is not None and quant.upper() in found:
        return model_id, found[quant.upper()]
    if quant is None and ("" in found or len(found) == 1):
        return model_id, found.get("") or next(iter(found.values()))
    there = ", ".join(sorted(path.name for path in found.values()))
    wanted = "its quant must be named" if quant is None else f"there is none with quant {quant!r}"
    raise Refusal(NO_SUCH_QUANT, f"For {model_id!r} {wanted}; there is {there}.")


def loadable(directories: Sequence[Path]) -> dict[str, set[str]] | None:
    """Return every id that `find` has a file for, with the quants of its files.

    Quants are in upper case, "" for a name without one. None: there are too many files.
    """
    found: dict[str, set[str]] = {}
    left = MAX_ENTRIES
    for directory in directories:
        seen: set[tuple[int, int]] = set()  # a symlink may lead back up
        folders: list[tuple[str, ...]] = [()]
        while folders:
            parts = folders.pop()
            folder = directory.joinpath(*parts)
            below, names = _look_into(folder, seen)
            left -= len(below) + len(names) + 1
            if left < 0:
                return None
            folders += [(*parts, name) for name in below]
            for stem in (stem for stem, _ in _models_among(names, folder)):
                _note_names(found, parts, stem)
    return found


def _look_into(folder: Path, seen: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder; none if scanned before."""
    below: list[str] = []
    names: list[str] = []
    try:
        here = folder.stat()
        if (here.st_dev, here.st_ino) in seen:
            return [], []
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                (below if _is_dir(entry) else names).append(entry.name)
    except OSError:
        return [], []
    return below, names


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symlink that leads back to itself, or to where this user may not look
        return False


def _note_names(found: dict[str, set[str]], parts: tuple[str, ...], stem: str) -> None:
    """Add every id that loads a file of that stem in the folder of those parts."""
    if stem.startswith(_PROJECTOR):
        return
    found.setdefault("/".join((*parts, stem)), set()).add("")
    for at in (match.start() for match in re.finditer(r"[-.]", stem)):
        if at and re.fullmatch(_QUANT, stem[at + 1 :], re.IGNORECASE):
            found.setdefault("/".join((*parts, stem[:at])), set()).add(stem[at + 1 :].upper())
    if parts:
        ending = _ENDING.search(stem)
        quant = ending[1].upper() if ending else ""
        found.setdefault("/".join(parts), set()).add(quant)


def _by_quant(directories: Sequence[Path], parts: list[str]) -> dict[str, Path]:
    """The files named like an id, by quant in upper case; "" for a name without one."""
    found: dict[str, Path] = {}
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        return found
    name = re.compile(rf"{re.escape(parts[-1])}(?:[-.]({_QUANT}))?", re.IGNORECASE)
    for directory in directories:
        folder = directory.joinpath(*parts)
        for stem, path in _files(folder.parent):
            if stem.startswith(parts[-1]) and (named := name.fullmatch(stem)):
                found.setdefault((named[1] or "").upper(), path)
        for stem, path in _files(folder):
            if not stem.startswith(_PROJECTOR):  # a projector is no model of its own
                ending = _ENDING.search(stem)
                found.setdefault(ending[1].upper() if ending else "", path)
    return found


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The GGUF files there by name without suffix and part number; of parts only the first."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):  # ValueError: a name that no file system could hold
        return []
    return _models_among(names, folder)


def _models_among(names: list[str], folder: Path) -> list[tuple[str, Path]]:
    files = []
    for name in names:
        if name.endswith(_SUFFIX):
            stem = name.removesuffix(_SUFFIX)
            part = _PART.search(stem)
            if part is None or part[1] == "00001":
                files.append((_PART.sub("", stem), folder / name))
    return files
