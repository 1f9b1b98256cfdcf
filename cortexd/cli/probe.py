"""Ask a node what it is before it is added to a configuration."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

from cortexd.cli.screen import counted
from cortexd.config import gateway
from cortexd.config.certificates import authorities, trusting
from cortexd.config.secrets import read_token
from cortexd.nodes.client import NeuronClient, NodeError

TIMEOUT: Final = 5.0  # seconds for each of two answers


def probe(node: gateway.Neuron, config: gateway.Config, base: Path) -> str:
    """Return what the node has, in a few words. `base`: where relative paths start.

    Raises NodeError with a remedy, OSError for a token or certificates that can't be read.
    """
    token = read_token(node, base)
    tls = trusting(authorities(config, node), base)
    try:
        return asyncio.run(_ask(node.endpoint, token, tls))
    except NodeError as error:
        raise NodeError(_advice(node, error, has_token=token is not None)) from error


async def _ask(endpoint: str, token: str | None, tls: ssl.SSLContext) -> str:
    import aiohttp

    from cortexd.daemon.resolver import Resolver

    resolver = Resolver()  # as the gateway's: it has to find the node by the same name
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            client = NeuronClient(session, endpoint, token=token, trusted=lambda: tls)
            devices = (await client.discovery(TIMEOUT)).devices
            models = await client.models(TIMEOUT)
    finally:
        await resolver.close()
    return f"{counted(len(devices), 'device')} and {counted(len(models), 'model')}"


def _advice(node: gateway.Neuron, error: NodeError, *, has_token: bool) -> str:
    if error.status in (401, 403) and not has_token:
        return f"{node.name} requires a token; name its file with --token-file."
    if error.status in (401, 403):
        return f"{node.name} rejected the token in {node.token_file or 'the environment'}."
    if error.status is not None:
        return (
            f"{node.endpoint} does not answer like a node agent: {error}. Name the address that "
            "`cortexd neuron` listens on."
        )
    return (
        f"{node.name} does not answer at {node.endpoint}: {error}. Is the node agent running there "
        "(cortexd neuron), and does it listen on that address?"
    )
