"""Which file below the models' directories is meant by a name. Reads directories: blocks.

A name comes over the wire, so it may never lead out of these directories; what lies in them, an
operator's symlinks included, is the operator's word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cortexd.errors import MODEL_NOT_FOUND, Kind, Refusal

NO_SUCH_QUANT: Final = Kind("no_such_quant", 422)

_SUFFIX: Final = ".gguf"
# What may stand between a model's name and ".gguf" without making it another model's name.
_QUANT: Final = re.compile(
    r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP\d\w*|B?F16|F32|FP?\d+)", re.IGNORECASE
)
_PART: Final = re.compile(r"-(\d{5})-of-\d{5}$")


def find(directories: Sequence[Path], model_id: str, quant: str | None = None) -> Path:
    """The file of a model that is named by its id alone.

    `<id>.gguf`, `<id>-<quant>.gguf` or `<id>.<quant>.gguf`, else a GGUF file in a folder `<id>`;
    of a file in parts the first. Raises Refusal: model_not_found with the names that were looked
    for, or no_such_quant with those that are there.
    """
    parts = model_id.split("/")
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        raise Refusal(MODEL_NOT_FOUND, f"{model_id!r} can't be the name of a model file.")
    found: dict[str, Path] = {}  # quant, upper case, "" when the name has none → file
    for directory in directories:
        folder = directory.joinpath(*parts)
        for stem, path in _files(folder.parent):
            if stem == parts[-1]:
                found.setdefault("", path)
            elif stem.startswith(parts[-1]) and stem[len(parts[-1])] in "-.":
                rest = stem[len(parts[-1]) + 1 :]
                if _QUANT.fullmatch(rest):
                    found.setdefault(rest.upper(), path)
        for stem, path in _files(folder):
            if not stem.startswith("mmproj"):
                named = re.search(rf"(?:^|[-.])({_QUANT.pattern})$", stem, re.IGNORECASE)
                found.setdefault(named[1].upper() if named else "", path)
    if not found:
        names = f"{model_id}.gguf, {model_id}-{quant or '<quant>'}.gguf, {model_id}/*.gguf"
        where = ", ".join(map(str, directories)) or "any directory: [paths] models is empty"
        raise Refusal(
            MODEL_NOT_FOUND, f"No file for {model_id!r}: looked for {names} below {where}."
        )
    if quant is not None and quant.upper() in found:
        return found[quant.upper()]
    if quant is None and "" in found:
        return found[""]
    if quant is None and len(found) == 1:
        return next(iter(found.values()))
    there = ", ".join(sorted(path.name for path in found.values()))
    wanted = "its quant must be named" if quant is None else f"there is none with quant {quant!r}"
    raise Refusal(NO_SUCH_QUANT, f"For {model_id!r} {wanted}; there is {there}.")


def locate(directories: Sequence[Path], path: str) -> Path:
    """The configured `path`: absolute, or below the first directory that has it."""
    if Path(path).is_absolute() or not directories:
        return Path(path)
    candidates = [directory / path for directory in directories]
    return next((each for each in candidates if each.exists()), candidates[0])


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The GGUF files there by name without suffix and part number; of parts only the first."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):  # ValueError: a name that no file system could hold
        return []
    files = []
    for name in names:
        if name.endswith(_SUFFIX):
            stem = name.removesuffix(_SUFFIX)
            part = _PART.search(stem)
            if part is None or part[1] == "00001":
                files.append((_PART.sub("", stem), folder / name))
    return files
