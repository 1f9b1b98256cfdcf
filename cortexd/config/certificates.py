"""The certificate authorities that nodes' certificates are checked against.

The system's, those of `[upstream] ca_file`, and, for one node, those of its own `ca_file`: each
file adds to the others and replaces nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cortexd.config.files import located
from cortexd.config.gateway import Config, Neuron


class Certificates(msgspec.Struct, frozen=True):
    """The authorities as they were when the files were read.

    common: for nodes without a file of their own; None: no file was read, since none of them has an
        https endpoint.
    own: node → its own authorities.
    contents: file as it is named in the configuration → its bytes.
    """

    common: ssl.SSLContext | None = None
    own: Mapping[str, ssl.SSLContext] = {}
    contents: Mapping[str, bytes] = {}

    def of(self, node: str) -> ssl.SSLContext | None:
        """Return the context that checks a node's certificate; None: the system's authorities."""
        return self.own.get(node, self.common)


def read_certificates(config: Config, base: Path) -> Certificates:
    """Read the files that a configuration names; relative paths start at `base`.

    Reads the system's store for each different set of files. Raises OSError.
    """
    made: dict[tuple[str, ...], ssl.SSLContext] = {}
    contents: dict[str, bytes] = {}

    def context(files: tuple[str, ...]) -> ssl.SSLContext:
        if files not in made:
            made[files] = trusting(files, base)
            contents.update((file, located(base, file).read_bytes()) for file in files)
        return made[files]

    files = authorities(config)
    is_needed = any(
        node.endpoint.startswith("https:") and node.ca_file is None for node in config.neurons
    )
    common = context(files) if files or is_needed else None
    own = {
        node.name: context(authorities(config, node))
        for node in config.neurons
        if node.ca_file is not None
    }
    return Certificates(common, own, contents)


def authorities(config: Config, node: Neuron | None = None) -> tuple[str, ...]:
    """Return the files that apply to a node, or to nodes that have none of their own."""
    files = (config.upstream.ca_file, None if node is None else node.ca_file)
    return tuple(file for file in files if file is not None)


def trusting(files: tuple[str, ...], base: Path) -> ssl.SSLContext:
    """Return a context that trusts these files' authorities and the system's. Raises OSError."""
    context = ssl.create_default_context()
    for file in files:
        context.load_verify_locations(cafile=located(base, file))
    return context
