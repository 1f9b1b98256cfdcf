"""Another configuration in the middle of everything: read and checked first, then swapped at once.

A file that can't be used, or a listener that can't be opened, changes nothing at all; it is said in
the log, in /health and to the service manager until a reload succeeds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from cortexd import errors
from cortexd.config.changes import Changes, changes, in_use
from cortexd.config.current import Current, Settings
from cortexd.config.source import ConfigError
from cortexd.control.events import Events
from cortexd.control.refusals import shutting_down
from cortexd.daemon import notify
from cortexd.daemon.tasks import Tasks
from cortexd.errors import Refusal
from cortexd.gateway.listeners import KEYS, CantListen, Listeners
from cortexd.metrics import Metrics

log = logging.getLogger(__name__)

PATIENCE: Final = 5.0  # seconds for a reload that is under way when the gateway stops


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload has changed, in words, and what will hold from the next restart on."""

    status: str
    changed: tuple[str, ...]
    restart: tuple[str, ...]


class Reload:
    """Reloads, one after the other.

    read: the settings as they are on disk now; blocks, raises ConfigError. None: there is no file.
    swap: has everything follow what is in `current` from now on; never waits.
    trouble: why the last one failed, in one line; None: it did not.
    """

    def __init__(
        self,
        current: Current,
        read: Callable[[], Settings] | None,
        listeners: Listeners,
        swap: Callable[[Settings, Changes], None],
        metrics: Metrics,
        events: Events,
    ) -> None:
        self._current = current
        self._read = read
        self._listeners = listeners
        self._swap = swap
        self._metrics = metrics
        self._events = events
        self._one = asyncio.Lock()
        self._is_due = self._is_closed = False
        self._tasks = Tasks()
        self.trouble: str | None = None

    def soon(self) -> None:
        """Reload as soon as the one that runs is over; several wishes are one."""
        if not self._is_due:
            self._is_due = True
            self._tasks.spawn("reload", self._now())

    async def reload(self) -> Reloaded:
        """What has changed. Raises Refusal (reload_failed, shutting_down), and nothing has."""
        async with self._one:
            self._is_due = False
            if self._is_closed:
                raise shutting_down()
            notify.reloading()
            try:
                return await self._reload()
            finally:
                notify.send("READY=1")

    async def close(self) -> None:
        """Begin none any more; the one that runs may open a listener, and has to be waited for."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE), self._one:
                pass
        await self._tasks.close()

    async def _now(self) -> None:
        with suppress(Refusal):
            await self.reload()

    async def _reload(self) -> Reloaded:
        if self._read is None:
            raise Refusal(
                errors.RELOAD_FAILED,
                "This gateway was started without a file; start it with --config.",
            )
        before = self._current.settings
        try:
            after = await asyncio.to_thread(self._read)
            opened = await self._listeners.prepare(before.config.gateway, after.config.gateway)
        except (ConfigError, CantListen) as error:
            raise self._failed(str(error).splitlines()) from error
        # From here on nothing waits: whoever looks sees all of the one or all of the other.
        found = changes(before, after)
        after = msgspec.structs.replace(after, config=in_use(before.config, after.config))
        self._current.put(after)
        self._listeners.replace(opened)
        self._swap(after, found)
        return self._succeeded(found)

    def _failed(self, mistakes: list[str]) -> Refusal:
        for mistake in mistakes:
            log.error("not reloaded: %s", mistake)
        rest = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        self.trouble = f"not reloaded, the configuration before stays: {mistakes[0]}{rest}"
        self._metrics.reload_success.value = 0
        return Refusal(
            errors.RELOAD_FAILED,
            "The configuration can't be used, and the one before stays in use: "
            + "; ".join(mistakes)
            + ". Correct that and reload again.",
        )

    def _succeeded(self, found: Changes) -> Reloaded:
        held = {f"gateway.{key}" for key in KEYS if self._listeners.are_inherited(key)}
        changed = [f"{key} changed" for key in found.keys if key not in held]
        changed += found.entries
        restart = list(found.restart)
        restart += [
            f"{key}: systemd holds its socket; change ListenStream= in the socket unit, too"
            for key in found.keys
            if key in held
        ]
        self.trouble = None
        self._metrics.reload_success.value = 1
        said = "; ".join(changed) or "nothing has changed"
        log.info("reloaded: %s", said)
        if restart:
            log.warning("restart the gateway for what it reads once: %s", "; ".join(restart))
        self._events.tell("config_reloaded", message=said)
        status = "reloaded" if changed or restart else "unchanged"
        return Reloaded(status, tuple(changed), tuple(restart))
