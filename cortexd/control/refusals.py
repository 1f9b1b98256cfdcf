"""What those are told who waited for a model in vain."""

from __future__ import annotations

from collections.abc import Mapping

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.fleet.snapshot import Failure


def still_loading(model: str, node: str | None) -> Refusal:
    """The wait was longer than its bound."""
    where = f" on {node}" if node else ""
    return Refusal(
        errors.MODEL_LOADING,
        f"The model {model!r} is still loading{where}. The load goes on; try again later.",
    )


def recovering(model: str, node: str | None) -> Refusal:
    """The node rebuilds it by itself, and is not done within the bound for that."""
    return Refusal(
        errors.MODEL_RECOVERING, f"The model {model!r} is being rebuilt on {node}; try again soon."
    )


def no_room_in_time(model: str, timeout: float) -> Refusal:
    """What stands in its way worked all the time."""
    return Refusal(
        errors.NO_ROOM,
        f"There was no room for the model {model!r} within {timeout:g} s: what stands in its way "
        "is at work. Try again later.",
    )


def load_failed(model: str, failed: Mapping[str, Failure], advice: str) -> Refusal:
    """Every node that was asked says why not. `advice`: a sentence on what to do next."""
    words = "; ".join(f"{node} says {failure.message}" for node, failure in failed.items())
    return Refusal(
        errors.COLD_LOAD_FAILED,
        f"The model {model!r} could not be loaded: {words}. {advice}",
        retry_after=1,
    )


def cannot_load(model: str, node: str, reason: str) -> Refusal:
    """Return the refusal of a load that the named node can't do, now or later."""
    return Refusal(
        errors.NO_FEASIBLE_NEURON,
        f"The node {node} can't load the model {model!r}: {reason}. Change its profile, put its "
        "file there, or name another node.",
    )


def shutting_down() -> Refusal:
    """Nobody begins to wait any more, and nobody goes on waiting."""
    return Refusal(errors.SHUTTING_DOWN, "The gateway is shutting down; try again in a moment.")
