"""What outlives a restart: one small JSON file in the state directory.

Nothing depends on it. A file that can't be used is started without, a disk that takes nothing
harms nothing, and both are said once. It is replaced whole, off the loop, so that whoever is
killed in the middle leaves the one before.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cortexd.config.catalogue import Profile
from cortexd.config.files import located
from cortexd.daemon.tasks import Tasks
from cortexd.fleet.snapshot import FootprintKey

log = logging.getLogger(__name__)

FILE: Final = "state.json"
MAX_SIZE: Final = 8 << 20  # bytes; a larger file is none of ours
PAUSE: Final = 3.0  # seconds between two writes
RETRY: Final = 30.0  # seconds after a write that failed


class Footprint(msgspec.Struct, frozen=True):
    """MiB that a model was seen to take, and the fingerprint of its profile at that time."""

    key: FootprintKey
    mb: float
    profile: str


class State(msgspec.Struct, frozen=True):
    """The content of the file.

    drained: nodes that an operator took out of service. models: node → models that it listed last
    and the catalogue does not list.
    """

    drained: tuple[str, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    models: Mapping[str, tuple[str, ...]] = {}


_decode: Final = msgspec.json.Decoder(State)


class StateFile:
    """Keeps `state` as it was last put. `directory`: None keeps nothing beyond this process."""

    def __init__(self, directory: Path | None) -> None:
        self.state = State()
        self._kept = self.state
        self._file = directory and directory / FILE
        self._trouble: str | None = None
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._tasks = Tasks()
        self._writer: asyncio.Task[None] | None = None

    @property
    def problem(self) -> str | None:
        """Why changes are not kept, and the remedy; None: they are kept, or need not be."""
        if self._trouble is None:
            return None
        return (
            f"{self._file} can't be written: {self._trouble}; a restart forgets what changed: make "
            "it writable, or set [gateway] state_dir"
        )

    async def check(self) -> str | None:
        """Try to write the state; return why it can't be kept, and the remedy."""
        if self._file is None:
            return "no state directory is known: set [gateway] state_dir"
        await self._probe(self._file)
        return self.problem

    async def open(self) -> State:
        """Read what the last process left, and begin to keep what is put."""
        if self._file is None:
            return self.state
        try:
            self.state = self._kept = await asyncio.to_thread(_read, self._file)
        except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
            log.warning(
                "%s can't be used: %s; starting without it: no node is drained and no footprint "
                "is known; it is replaced at the next change",
                self._file,
                _words(error),
            )
        await self._probe(self._file)
        self._writer = self._tasks.spawn("state", self._keep_writing(self._file))
        return self.state

    def put(self, state: State) -> None:
        """Have this kept from now on."""
        self.state = state
        self._changed.set()

    async def close(self) -> None:
        """Write what is not written yet."""
        self._closing.set()
        self._changed.set()
        if self._writer is not None:
            await self._writer

    async def _keep_writing(self, file: Path) -> None:
        while not self._closing.is_set():
            await self._changed.wait()
            self._changed.clear()
            await self._write(file)
            pause = PAUSE
            if self._trouble is not None:
                self._changed.set()
                pause = RETRY
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
        await self._write(file)

    async def _write(self, file: Path) -> None:
        state = self.state
        if state == self._kept:
            if self._trouble is not None:
                await self._probe(file)
            return
        try:
            await asyncio.to_thread(_replace, file, _encoded(state))
        except OSError as error:
            self._note(file, _words(error))
        else:
            self._kept = state
            self._note(file, None)

    async def _probe(self, file: Path) -> None:
        """Check whether the file could be written; leave nothing behind."""
        try:
            await asyncio.to_thread(_try_writing, file)
        except OSError as error:
            self._note(file, _words(error))
        else:
            self._note(file, None)

    def _note(self, file: Path, trouble: str | None) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble is None:
            log.info("%s can be written again", file)
        else:
            self._changed.set()  # try again later
            log.warning(
                "%s can't be written: %s; the gateway goes on and tries again every %g s, but a "
                "restart would forget what changed: make room there, or set [gateway] state_dir",
                file,
                trouble,
                RETRY,
            )


def state_directory(configured: str | None, base: Path, environ: Mapping[str, str]) -> Path | None:
    """Where the file is: as configured (from `base` on), else where systemd says, else where the
    user's state is. None: nowhere, since nothing says where that would be."""
    if configured is not None:
        return located(base, configured)
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    home = environ.get("XDG_STATE_HOME", "")
    if Path(home).is_absolute():  # any other is to be ignored, says its specification
        return Path(home) / "cortexd"
    try:
        return Path.home() / ".local/state/cortexd"
    except RuntimeError:
        return None


def fingerprint(profile: Profile) -> str:
    """Of what decides how much memory a model takes: another one makes a measurement void."""
    told = (
        profile.harness,
        profile.quant,
        profile.source,
        profile.vram_mb,
        profile.min_devices,
        profile.min_device_vram_mb,
        profile.limit,
    )
    return hashlib.blake2s(msgspec.json.encode(told), digest_size=8).hexdigest()


def noted(
    measured: Mapping[FootprintKey, float], profiles: Mapping[str, Profile]
) -> tuple[Footprint, ...]:
    """Footprints as they are kept: those of models in the catalogue."""
    return tuple(
        Footprint(key, mb, fingerprint(profiles[key.model]))
        for key, mb in measured.items()
        if key.model in profiles
    )


def remembered(state: State, profiles: Mapping[str, Profile]) -> dict[FootprintKey, float]:
    """Footprints that still hold: of models whose profile is what it was."""
    return {
        kept.key: kept.mb
        for kept in state.footprints
        if kept.mb > 0
        and (profile := profiles.get(kept.key.model))
        and fingerprint(profile) == kept.profile
    }


def _read(file: Path) -> State:
    """Raises OSError, ValueError, RecursionError, msgspec.DecodeError."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return State()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_SIZE:
        raise ValueError("it is not a file of the gateway's")
    return _decode.decode(file.read_bytes())


def _encoded(state: State) -> bytes:
    """Return the content of the file, which must be short enough to be read: what was learnt from
    nodes gives way to what an operator decided."""
    content = msgspec.json.encode(state)
    return content if len(content) <= MAX_SIZE else msgspec.json.encode(State(state.drained))


def _try_writing(file: Path) -> None:
    """Raise OSError if the file can't be created or replaced. Makes no directory."""
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if file.parent.is_dir():
        with tempfile.TemporaryFile(dir=file.parent):
            return
    there = file.parent
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _replace(file: Path, content: bytes) -> None:
    """Raises OSError; the file is then what it was."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{FILE}-", dir=file.parent)  # only for its owner
    try:
        with os.fdopen(handle, "wb") as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
