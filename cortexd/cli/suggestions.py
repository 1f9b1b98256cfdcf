"""Suggests the model or node that was probably meant, from the names that a gateway has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cortexd.config.nearest import nearest

if TYPE_CHECKING:
    import argparse

    import aiohttp

# Code of a refusal → the arguments that may hold the name, and where the known names are listed.
_LISTS: Final = {
    "model_not_found": (("model",), "/v1/models", "data", "id"),
    "unknown_node": (("node", "name"), "/api/fleet", "nodes", "name"),
}


async def add_suggestion(
    gateway: aiohttp.ClientSession, args: argparse.Namespace, answer: dict[str, Any]
) -> None:
    """Add `Did you mean …?` to a refusal of an unknown model or node, if a known name is like it.

    If the known names can't be read, nothing is added.
    """
    holder = answer.get("error", answer)
    if not isinstance(holder, dict) or holder.get("code") not in _LISTS:
        return
    import aiohttp

    arguments, path, key, field = _LISTS[holder["code"]]
    given = next((value for each in arguments if (value := getattr(args, each, None))), None)
    text = next((each for each in ("message", "words") if isinstance(holder.get(each), str)), None)
    if given is None or text is None:
        return
    try:
        async with gateway.get(path) as listing:
            known = [str(each[field]) for each in json.loads(await listing.read())[key]]
    except (aiohttp.ClientError, OSError, ValueError, TypeError, LookupError):
        return
    near = nearest(given, known)
    if near is None:  # "qwen3-8b" for "Qwen/Qwen3-8B"
        folded = given.casefold()
        near = next((each for each in known if each.casefold().rpartition("/")[2] == folded), None)
    if near is not None:
        holder[text] += f" Did you mean {near!r}?"
