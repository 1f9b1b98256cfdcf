"""A cheap start: what a daemon does before it imports the rest.

Imports take half of the CPU time until the first answer. Nothing here changes what they do.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_STORE: Final = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)  # where OpenSSL looks for the system's authorities


def begin() -> None:
    """Import aiohttp cheaply, and pause the garbage collector until `loop.settle`.

    When it is imported, aiohttp reads the system's certificate authorities, twice, for its default
    contexts, which is a tenth of a start. A daemon does not use these: https nodes are checked with
    the contexts of `config.certificates`. With a default context, a connection would be refused.
    """
    gc.disable()
    with _hidden_authorities():
        import aiohttp  # noqa: F401 - the import is what it is about


@contextmanager
def _hidden_authorities() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _STORE}
    os.environ.update(dict.fromkeys(_STORE, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
