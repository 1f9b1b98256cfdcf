"""Faults of an upstream: the refusals they become, and what each attempt does about them.

Texts quote the node's own words, without the token that the gateway sends it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from cortexd import errors
from cortexd.config.current import Current
from cortexd.config.secrets import token_source
from cortexd.control.dispatch import RouteDecision
from cortexd.control.refusals import shutting_down
from cortexd.control.registry import Registry
from cortexd.errors import Refusal
from cortexd.gateway.inbound import Inbound
from cortexd.gateway.retry import Attempts
from cortexd.gateway.stream_errors import ends_properly, refusal_event
from cortexd.nodes.endpoint import may_carry_token, port_hint
from cortexd.nodes.masking import mask_of
from cortexd.proxy.answer import UpstreamFault, What
from cortexd.proxy.call import Policy
from cortexd.proxy.splice import Splice
from cortexd.wire.engine_errors import STATUSES
from cortexd.wire.neuron import fault_text

_INSPECTED: Final = STATUSES | {HTTPStatus.UNAUTHORIZED}
_UNREACHED: Final = frozenset({"refused", "unreachable"})


class UpstreamFaults:
    """Turns faults into refusals."""

    def __init__(self, registry: Registry, current: Current) -> None:
        self._registry = registry
        self._current = current

    def refusal(self, fault: UpstreamFault, route: RouteDecision) -> Refusal:
        """Return the refusal for a request whose last attempt ended with this fault."""
        node = self._registry.snapshot.nodes.get(route.node)
        fault.content = mask_of(self._current.tokens.get(route.node)).json(fault.content)
        hint = ""
        if fault.what in _UNREACHED and node is not None:
            hint = port_hint(route.endpoint, node.endpoint)
        elif fault.what == "unauthorized":
            hint = self._token_hint(route)
        return self._masked(_unanswered(fault, route, hint), route)

    def _token_hint(self, route: RouteDecision) -> str:
        """Return why a node may have rejected the gateway's credentials, and the remedy."""
        neurons = self._current.config.neurons
        neuron = next((each for each in neurons if each.name == route.node), None)
        if neuron is None or not self._current.tokens.get(route.node):
            return "It requires a token: set token_file."
        if not may_carry_token(route.endpoint, neuron.endpoint):
            return f"Its token is not sent to {route.endpoint}, which is not on its own host."
        return f"It rejected the token in {token_source(neuron)}."

    def has_token(self, node: str) -> bool:
        """Return whether the gateway has a token for a node."""
        return bool(self._current.tokens.get(node))

    def interrupted(self, fault: UpstreamFault, route: RouteDecision) -> Refusal:
        """Return the refusal that a stream ends with when its upstream breaks off."""
        return self._masked(_interrupted(fault, route), route)

    def _masked(self, refusal: Refusal, route: RouteDecision) -> Refusal:
        """Mask the node's token in the message, which quotes the node: a node may echo anything."""
        refusal.message = mask_of(self._current.tokens.get(route.node)).text(refusal.message)
        return refusal


class AttemptPolicy(Policy):
    """Decides about the answer to one attempt of one request."""

    __slots__ = ("_attempts", "_faults", "_inbound", "_route", "_splice")

    def __init__(
        self,
        faults: UpstreamFaults,
        inbound: Inbound,
        route: RouteDecision,
        attempts: Attempts,
        splice: Splice,
    ) -> None:
        self._faults = faults
        self._inbound = inbound
        self._route = route
        self._attempts = attempts
        self._splice = splice

    def declines(self, status: int) -> bool:
        """Return whether an error answer is given up for another replica or a place in line."""
        return self._attempts.declines(self._route, status)

    def inspects(self, status: int) -> bool:
        """Return whether an error answer is read whole: it may be about a model or a token."""
        # A node may echo its token in any error.
        return status in _INSPECTED or (status >= 400 and self._faults.has_token(self._route.node))

    def judge(self, status: int, content: bytes) -> What | None:
        """Return the fault that an error answer stands for; None: it is passed on."""
        return self._attempts.judge(self._route, status, content)

    def last_words(self, fault: UpstreamFault) -> bytes:
        """Return the event that ends a stream which broke off, in the caller's dialect."""
        refusal = self._faults.interrupted(fault, self._route)
        return refusal_event(refusal, self._inbound, self._splice)

    def ends_properly(self) -> bool:
        """Return whether such a stream still ends as HTTP says."""
        return ends_properly(self._inbound.path)


def _interrupted(fault: UpstreamFault, route: RouteDecision) -> Refusal:
    if fault.what == "stopped":
        return shutting_down()
    if fault.what == "dead":
        return Refusal(
            errors.UPSTREAM_INTERRUPTED,
            f"The answer broke off: the node {route.node} is unhealthy: {fault}. Ask again.",
        )
    return Refusal(
        errors.UPSTREAM_INTERRUPTED,
        f"The answer broke off: {fault} on the node {route.node}. Ask again.",
    )


def _unanswered(fault: UpstreamFault, route: RouteDecision, hint: str) -> Refusal:
    model, node = route.replica.model, route.node
    if fault.what == "stopped":
        return shutting_down()
    if fault.what == "dead":
        return Refusal(
            errors.UPSTREAM_TIMEOUT,
            f"The node {node} is unhealthy: {fault}. It had not begun to answer for {model!r}. "
            "Try again.",
        )
    if fault.what in ("timeout", "unreachable"):
        return Refusal(
            errors.UPSTREAM_TIMEOUT,
            f"The node {node} did not begin to answer for {model!r} in time: {fault}. "
            f"{hint or 'Try again.'}",
        )
    if fault.what == "own":
        return Refusal(
            errors.ENDPOINT_REFUSED,
            f"The node {node} can't be used for {model!r}: it names the endpoint {route.endpoint}, "
            "which leads back to this gateway. Set [[neurons]] endpoint to the address of the "
            "neuron, or correct what the neuron names.",
        )
    if fault.what == "unauthorized":
        words, _ = fault_text(fault.content)
        return Refusal(
            errors.UPSTREAM_FAILED,
            f"The node {node} did not accept the gateway's request for {model!r}: {words}. {hint}",
        )
    if fault.what == "model_missing":
        words, _ = fault_text(fault.content)
        return Refusal(
            errors.UPSTREAM_FAILED,
            f"The node {node} lists the model {model!r}, but refuses requests for it: "
            f"{words}. Load it again there, or restart the node's engine.",
        )
    if fault.what == "answered":
        words, _ = fault_text(fault.content)
        return Refusal(
            errors.UPSTREAM_FAILED,
            f"The node {node} answered {fault.status} for {model!r}: {words}.",
        )
    return Refusal(
        errors.UPSTREAM_FAILED,
        f"The node {node} did not answer for {model!r}: {fault}. {hint or 'Try again.'}",
    )
