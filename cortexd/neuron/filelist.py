"""The models that this host could load, by the files in its directories.

The directories are scanned regularly, off the loop. Only names are known here; `library` decides
which file a name means.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cortexd.config.files import is_there, locate
from cortexd.config.neuron import LocalModel
from cortexd.daemon.tasks import Tasks
from cortexd.neuron import library
from cortexd.wire.neuron import MAX_LOADABLE, Loadable

log = logging.getLogger(__name__)

RESCAN: Final = 10.0  # seconds between two scans
WITHIN: Final = 2.0  # seconds that an answer waits for a scan: a network mount may hang


class FileList:
    """The list of models that could be loaded here.

    configured: models with a path of their own, in the quant of that file.
    entries: None: there is no list, since it would be too long, or was not made yet.
    version: a text that changes with the entries; None without them.
    """

    def __init__(self, directories: Sequence[Path], configured: Iterable[LocalModel]) -> None:
        self._directories = tuple(directories)
        self._configured = tuple(configured)
        self._tasks = Tasks()
        self._look: asyncio.Task[None] | None = None
        self._is_too_long = False
        self.entries: list[Loadable] | None = None
        self.version: str | None = None

    async def start(self) -> None:
        """Scan once, and then regularly."""
        await self.refresh()
        self._tasks.spawn("look for model files", self._keep_looking())

    async def close(self) -> None:
        """Stop scanning."""
        await self._tasks.close()

    async def refresh(self) -> None:
        """Scan now; a scan that takes long goes on after this returns."""
        if self._look is None or self._look.done():
            self._look = self._tasks.spawn("look at model files", self._look_now())
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHIN):
                await asyncio.wait({self._look})

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(RESCAN)
            await self.refresh()

    async def _look_now(self) -> None:
        entries = await asyncio.to_thread(self._list)
        is_too_long = entries is None
        if is_too_long and not self._is_too_long:
            log.warning(
                "[paths] models holds too many files to list (over %d names): gateways do not "
                "learn which models could be loaded here",
                MAX_LOADABLE,
            )
        self._is_too_long, self.entries = is_too_long, entries
        self.version = None
        if entries is not None:
            content = msgspec.json.encode(entries)
            self.version = hashlib.blake2s(content, digest_size=8).hexdigest()

    def _list(self) -> list[Loadable] | None:
        """Scan the directories. Return None if there is too much in them. Blocks."""
        found = library.loadable(self._directories)
        if found is None:
            return None
        listed = {name: Loadable(name, sorted(quants)) for name, quants in found.items()}
        for model in self._configured:
            if is_there(locate(self._directories, model.path)):
                listed[model.id] = Loadable(model.id)
            else:  # only its path counts, not another file of that name
                listed.pop(model.id, None)
        return None if len(listed) > MAX_LOADABLE else [listed[name] for name in sorted(listed)]
