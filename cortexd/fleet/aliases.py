"""Aliases in words and lists: which of them lead nowhere, and how a refusal names one.

Pure. The alias of a request is resolved by the catalogue.
"""

from __future__ import annotations

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import Snapshot


def points_nowhere(alias: str, snapshot: Snapshot) -> bool:
    """Return whether an alias's model is neither in the catalogue nor on a node.

    False until every node has answered once: a node that has not answered may have it.
    """
    model = snapshot.catalogue.aliases[alias]
    return (
        model not in snapshot.catalogue.profiles
        and model not in snapshot.replicas
        and snapshot.settled
        and not any(node.is_unheard for node in snapshot.nodes.values())
    )


def name_alias(refusal: Refusal, asked: str | None, model: str | None) -> Refusal:
    """Return the refusal of a request with the alias that its caller used, if it was one."""
    if asked == model or asked is None:
        return refusal
    named = refusal.again()
    if refusal.kind is errors.MODEL_NOT_FOUND:
        named.message = (
            f"The alias {asked!r} points to the model {model!r}, which does not exist: no node has "
            "it and the catalogue does not list it. Correct it under [aliases] in the gateway's "
            "configuration; GET /v1/models lists what there is."
        )
    else:
        name = f"model {model!r}"
        named.message = refusal.message.replace(name, f"{name} (alias {asked!r})", 1)
    return named
