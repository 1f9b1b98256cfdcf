"""The child side of the llamacpp harness: one process, one model, llama.cpp's own HTTP server.

It is given its parent's process id as argument and one line of JSON on stdin: `model` (the
file), `id` (the name it answers under), `set` (names of xllamacpp's CommonParams, dotted for
nested ones, to values) and `read_mb_s` (MiB per second to read, or null). When the model is loaded
it prints the URL of its server; it ends when stdin does. `--devices` in place of the process id
prints what llama.cpp knows of this host's GPUs.

It imports nothing of cortexd: what goes wrong here must not reach the node agent.
"""

from __future__ import annotations

import ctypes
import difflib
import json
import mmap
import os
import signal
import stat
import sys
import time
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_LOG_WAIT = 5.0  # seconds; llama.cpp writes its log in a thread of its own, which the exit ends


def main() -> None:
    """Serve until stdin ends."""
    if sys.argv[1] == "--devices":
        print_devices()
        return
    die_with_parent(int(sys.argv[1]))
    # llama.cpp prints what it likes: the URL alone may go to the parent, the rest to the log.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    order = json.loads(sys.stdin.buffer.readline() or b"null")
    if order is None:
        return

    pages = read_slowly(order["model"], rate) if (rate := order.get("read_mb_s")) else None
    xllamacpp = engine()
    params = xllamacpp.CommonParams()
    params.model.path = order["model"]
    params.model_alias = {order["id"]}
    for name, value in order["set"].items():
        set_param(params, name, value)
    try:
        server = xllamacpp.Server(params)  # holds the GIL until the model is loaded
    except RuntimeError as error:
        wait_for_reason()
        fail(str(error))
    del pages
    print(server.listening_address, file=answer, flush=True)
    sys.stdin.buffer.read()
    # The server's destructor waits for clients that stream; whoever stops us has drained them.
    os._exit(0)


def engine() -> Any:
    """The module xllamacpp, which takes memory that does not come back."""
    try:
        import xllamacpp
    except ImportError as error:
        fail(f"{error}; it comes with: pip install 'cortexd[llamacpp]'")
    return xllamacpp


def die_with_parent(parent: int) -> None:
    """Be killed by the kernel as soon as the parent is gone, however it went."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        fail(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it was gone before the kernel was asked
        sys.exit(1)


def read_slowly(path: str, rate: float) -> mmap.mmap | None:
    """Bring a file into memory at `rate` MiB per second: the engine then finds it there.

    The pages count as this process's own while what is returned lives: so the parent sees how far
    it is. None when there is no such file; the engine says so in its own words.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - this process imports what it must
            pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    step = 1 << 20
    began = time.monotonic()
    for number, start in enumerate(range(0, len(pages), step)):
        for page in range(start, min(start + step, len(pages)), mmap.PAGESIZE):
            pages[page]
        time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
    return pages


def wait_for_reason() -> None:
    """Return when llama.cpp's log thread has written an error, at the latest after `_LOG_WAIT`.

    Returns at once where the log is not a file.
    """
    deadline = time.monotonic() + _LOG_WAIT
    while stat.S_ISREG(os.fstat(2).st_mode) and time.monotonic() < deadline:
        with open("/proc/self/fd/2", errors="replace") as log:  # noqa: PTH123 - see read_slowly
            if any(" E " in line for line in log):
                return
        time.sleep(0.01)


def set_param(params: Any, name: str, value: Any) -> None:
    """Set one parameter, or fail with words for the person who wrote it."""
    *path, last = name.split(".")
    holder = params
    for part in path:
        holder = getattr(holder, part, None)
    if last.startswith("_") or not hasattr(holder, last):
        known = [known for known in dir(holder) if not known.startswith("_")]
        near = difflib.get_close_matches(last, known, 1)
        fail(f"args: llama.cpp has no setting {name!r}" + (f"; {near[0]!r}?" if near else ""))
    members = getattr(type(getattr(holder, last)), "__members__", None)
    if members and isinstance(value, str):
        # pooling_type = "mean" means LLAMA_POOLING_TYPE_MEAN.
        chosen = [member for member in members if member.endswith(f"_{value.upper()}")]
        if not chosen:
            fail(f"args: {name} = {value!r}; it can be {', '.join(members)}")
        value = members[chosen[0]]
    try:
        setattr(holder, last, value)
    except (TypeError, ValueError, OverflowError) as error:
        fail(f"args: {name} = {value!r}: {error}")


def print_devices() -> None:
    """The GPUs as a JSON list of {index, name, total_mb, free_mb}."""
    xllamacpp = engine()
    kinds = xllamacpp.ggml_backend_dev_type
    devices = xllamacpp.get_device_info()
    found = [each for each in devices if each["type"] == kinds.GGML_BACKEND_DEVICE_TYPE_GPU]
    # llama.cpp takes an integrated GPU only where there is no other.
    found = found or [
        each for each in devices if each["type"] == kinds.GGML_BACKEND_DEVICE_TYPE_IGPU
    ]
    json.dump(
        [
            {
                "index": index,
                "name": device["description"] or device["name"],
                "total_mb": device["memory_total"] >> 20,
                "free_mb": device["memory_free"] >> 20,
            }
            for index, device in enumerate(found)
        ],
        sys.stdout,
    )


def fail(words: str) -> NoReturn:
    """End with one line that the parent looks for in the log."""
    sys.exit(f"error: {words}")


if __name__ == "__main__":
    main()
