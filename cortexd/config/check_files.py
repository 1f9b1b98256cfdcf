"""Checks that the files and directories that a configuration names exist.

Only `cortexd check` does so: a daemon starts without them, since a disk may be mounted later.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cortexd.config import gateway, neuron
from cortexd.config.decode import Problem
from cortexd.config.files import locate, located
from cortexd.config.lines import KeyPath
from cortexd.config.source import Source


def gateway_files(config: gateway.Config, source: Source) -> Iterator[Problem]:
    """Yield mistakes in the gateway's paths. Secrets and certificates are checked elsewhere."""
    directory = config.gateway.state_dir
    if directory is not None:
        yield from _creatable(("gateway", "state_dir"), located(source.path.parent, directory))


def neuron_files(config: neuron.Config, source: Source) -> Iterator[Problem]:
    """Yield mistakes in the neuron's paths, model files included. A default path may be missing."""
    base = source.path.parent
    directories = [located(base, each) for each in config.paths.models]
    if str(source.origin(("paths", "models"))) != "default":
        for number, directory in enumerate(directories):
            yield from _directory(("paths", "models", number), directory)
    if config.paths.logs is not None:
        yield from _creatable(("paths", "logs"), located(base, config.paths.logs))
    for number, model in enumerate(config.models):
        yield from _model_file(("models", number, "path"), directories, model.path)


def _directory(key: KeyPath, path: Path) -> Iterator[Problem]:
    kind = _kind(path)
    if kind == "missing":
        yield Problem(key, f"there is no directory {path}", "an existing directory")
    elif kind == "file":
        yield Problem(key, f"{path} is no directory", "an existing directory")


def _creatable(key: KeyPath, path: Path) -> Iterator[Problem]:
    """Check a directory that cortexd creates; its parent must exist, so that typos are found."""
    kind = _kind(path)
    if kind == "file":
        yield Problem(key, f"{path} is no directory", "a directory")
    elif kind == "missing":
        yield from _directory(key, path.parent)


def _model_file(key: KeyPath, directories: list[Path], path: str) -> Iterator[Problem]:
    file = locate(directories, path)
    kind = _kind(file)
    if kind == "directory":
        yield Problem(key, f"{file} is a directory", "a model file")
    elif kind == "missing":
        looked = "" if file == Path(path) or len(directories) < 2 else " (nor below the others)"
        yield Problem(key, f"there is no file {file}{looked}", "a model file, or its first part")


# Errors of a path that leads nowhere, whoever asks.
_NOWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


def _kind(path: Path) -> str:
    """Return `missing`, `directory`, `file`, or `hidden` if this user may not look."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a NUL in its name
        return "missing"
    except OSError as error:
        return "missing" if error.errno in _NOWHERE else "hidden"
    return "directory" if stat.S_ISDIR(mode) else "file"
