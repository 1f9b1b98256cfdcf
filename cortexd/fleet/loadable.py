"""The models whose files a node has, by its list; without a list that is unknown, not false."""

from __future__ import annotations

from types import MappingProxyType

from cortexd.config.catalogue import Profile
from cortexd.fleet.memory import RESIDENT
from cortexd.fleet.snapshot import Files, Ledger, Node
from cortexd.wire.neuron import Discovery


def files_of(discovery: Discovery) -> Files | None:
    """Index the models that a node could load. Return None if the node does not say."""
    if discovery.loadable is None:
        return None
    found = {
        model.id: None if model.quants is None else frozenset(map(str.upper, model.quants))
        for model in discovery.loadable
    }
    return MappingProxyType(found)


def has_file(profile: Profile, node: Node) -> bool | None:
    """Return whether `node` has a file to load the model from; None: the node does not say.

    The last list of a node holds while it is down. A resident model needs no file any more.
    """
    if node.files is None:
        return None
    info = node.models.get(profile.id)
    if info is not None and info.status in RESIDENT:
        return True
    quants = _quants(profile, node.files)
    return quants is None or _is_among(profile.quant, quants)


def no_file_reason(profile: Profile, node: Node, ledger: Ledger) -> str | None:
    """Return why `node` can't load the model for want of a file; None: it can, or may.

    For operators. The node's answer to a load counts more than its list.
    """
    if ledger.unloadable and (words := ledger.unloadable.get((node.name, profile.id))):
        return words
    if has_file(profile, node) is not False:
        return None
    quants = _quants(profile, node.files or {})
    if not quants:
        return f"has no file for {profile.id!r}"
    named = ", ".join(sorted(quants - {""})) or "one without a quant in its name"
    if profile.quant is None:
        return f"has several files for {profile.id!r} ({named}): set quant"
    return f"has no file for {profile.id!r} with quant {profile.quant!r}, only {named}"


def _quants(profile: Profile, files: Files) -> frozenset[str] | None:
    """Return the quants that are there; None: any. A source is optional, as for our neuron."""
    name = profile.load_name
    for known in (name, name.partition(":")[2]):
        if known in files:
            return files[known]
    return frozenset()


def _is_among(quant: str | None, quants: frozenset[str]) -> bool:
    if quant is None:
        return "" in quants or len(quants) == 1
    return quant.upper() in quants
