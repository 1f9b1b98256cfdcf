"""The neuron's configuration, as etc/neuron.toml spells it."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cortexd.config.logs import Logging
from cortexd.config.units import Amount, Bound, Count, Duration, Size, Wait

HARNESSES: Final = ("llamacpp",)  # that are shipped; the neuron has one of each name


class Agent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[neuron]`: the node agent itself.

    listen: host:port of the management API and the relayed inference.
    token_file: a file with the bearer token that every caller must send.
    memory_mb: MiB that models may use in all; unset: what the device has.
    load_timeout: how long an engine may take until it answers.
    max_body: the largest request body; the gateway's `max_body` should not be larger.
    max_buffered: all request bodies held at one time; above it requests are refused.
    """

    listen: str = "127.0.0.1:13131"
    token_file: str | None = None
    memory_mb: Count | None = None
    load_timeout: Wait = Duration(30 * 60)
    max_body: Annotated[Size, Bound(0, is_open=True)] = Size(64 << 20)
    max_buffered: Size = Size(512 << 20)


class Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[paths]`: where things are on this host.

    models: directories of model files.
    logs: for one log per engine (default: $LOGS_DIRECTORY/engines, which systemd sets, else
        $XDG_STATE_HOME/cortexd/engines, else ~/.local/state/cortexd/engines).
    read_mb_s: MiB per second that a load may read, where the disk is for others, too; unset: what
        it gives.
    """

    models: tuple[str, ...] = ("/var/lib/cortexd/models",)
    logs: str | None = None
    read_mb_s: Count | None = None


class LocalModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[models]]` table: a model this host knows; it loads on its first request.

    id: what requests call it.
    harness: what runs it.
    path: the model file; relative paths are looked up below `[paths] models`.
    context: tokens of context for each of the `parallel` slots.
    parallel: requests that it answers at the same time.
    gpu_layers: layers put on the GPU; -1 is all of them.
    vram_mb: MiB it will need, checked before the load; unset: the file's size.
    args: further settings of the harness.
    """

    id: str
    path: str
    harness: str = "llamacpp"
    context: Count = 4096
    parallel: Count = 1
    gpu_layers: Annotated[int, Bound(-1)] = -1
    vram_mb: Amount | None = None
    args: dict[str, str | int | float | bool] = {}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    neuron: Agent = Agent()
    paths: Paths = Paths()
    models: tuple[LocalModel, ...] = ()
    logging: Logging = Logging()
