"""Secrets, each in a file of its own: where it lies, and what may be used as one.

Nothing here ever repeats what such a file holds.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cortexd.config import gateway
from cortexd.config.files import located, reason

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"  # set by systemd: LoadCredential=, ImportCredential=
VARIABLE: Final = "CORTEX_TOKEN__"  # and the node's name in capitals
LONGEST: Final = 4096  # bytes of a token; a head must have room for more than that

_EVERYONE: Final = 0o007


class SecretError(OSError):
    """It can't be used; the message names the file, the reason and the remedy."""


def secret_file(name: str, base: Path, environ: Mapping[str, str]) -> Path:
    """Return where the secret called NAME lies.

    A bare name is a credential of the service manager's if there is one of that name; else see
    `located`.
    """
    if (directory := environ.get(CREDENTIALS)) and name == Path(name).name:
        credential = Path(directory) / name
        if credential.exists():
            return credential
    return located(base, name)


def read_secret(name: str, base: Path, environ: Mapping[str, str] = os.environ) -> str:
    """What the file of that name holds, without the white space around it. Raises SecretError."""
    file = located(base, name)
    try:
        file = secret_file(name, base, environ)
        # A FIFO that nobody writes to would keep a plain open waiting.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise SecretError(f"{file} is a {_kind(mode)}; name a file that holds the token")
            if mode & _EVERYONE and not _is_credential(file, environ):
                raise SecretError(
                    f"{file} is open to every user of this machine (mode {mode & 0o777:04o}); "
                    f"run: chmod o= {file}"
                )
            content = os.read(descriptor, LONGEST + 1)
        finally:
            os.close(descriptor)
    except SecretError:
        raise
    except (OSError, ValueError) as error:  # a NUL in its name
        raise SecretError(f"{file} can't be read: {reason(error)}") from error
    return _token(content, str(file))


def variable(node: str) -> str:
    """The environment variable that may hold the token of a node: "gpu-1" → CORTEX_TOKEN__GPU_1."""
    return VARIABLE + re.sub(r"[^A-Za-z0-9]", "_", node).upper()


def read_token(
    neuron: gateway.Neuron, base: Path, environ: Mapping[str, str] = os.environ
) -> str | None:
    """The bearer token of a node, if it has one. Raises SecretError."""
    name = variable(neuron.name)
    if name in environ:
        return _token(environ[name].encode(errors="surrogateescape"), name)
    return None if neuron.token_file is None else read_secret(neuron.token_file, base, environ)


def token_source(neuron: gateway.Neuron, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return where a node's token comes from: a variable or its token_file; None: it has none."""
    name = variable(neuron.name)
    return name if name in environ else neuron.token_file


def read_tokens(
    config: gateway.Config, base: Path, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Node → token; relative paths start at `base`. Raises SecretError."""
    tokens = {neuron.name: read_token(neuron, base, environ) for neuron in config.neurons}
    return {node: token for node, token in tokens.items() if token is not None}


def _token(content: bytes, where: str) -> str:
    token = content.strip()
    if not token:
        raise SecretError(f"{where} is empty; write a token into it")
    if len(content) > LONGEST:
        raise SecretError(f"{where} is too long for a token: {LONGEST} bytes at most")
    if len(token.splitlines()) > 1:
        raise SecretError(f"{where} holds several lines; a token is a single one")
    if not re.fullmatch(rb"[!-~]+", token):
        raise SecretError(f"{where} holds a space, or more than ASCII; no token does")
    return token.decode()


def _is_credential(file: Path, environ: Mapping[str, str]) -> bool:
    """Whether the service manager put it there: it saw to who may read it."""
    directory = environ.get(CREDENTIALS)
    return bool(directory) and file.parent == Path(directory or "")


def _kind(mode: int) -> str:
    return "directory" if stat.S_ISDIR(mode) else "device or a pipe"
