"""Nodes at their worst: observations of arbitrary and of well-chosen bad values."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cortexd.fleet.observe import Observation
from cortexd.wire.neuron import (
    STATUSES,
    Activation,
    Cost,
    DeviceHealth,
    DeviceInfo,
    Discovery,
    FailedActivation,
    Health,
    Limit,
    Model,
    ModelLoad,
    Progress,
    Servable,
)

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\u202e"

# Few good ones, so that they meet: in the list, in the load, in what is activated.
ids = st.sampled_from(["a", "b", "team/c", "模型"]) | st.sampled_from(
    ["", " ", "\x00", ESCAPES, "x" * 513, "y" * 10_000, "\ud800", "a\nb", 'quo"te\\', "{b}"]
)
texts = st.sampled_from(["plain", "", ESCAPES, "z" * 10_000, "\ud800", "two\nlines"]) | st.text()
integers = st.sampled_from([-1, 0, 1, 63, 64, 2**31, 2**63, 2**64, 10**400]) | st.integers()
numbers = integers | st.floats() | st.sampled_from([0.5, 1e308, float("nan"), float("inf")])
indices = st.integers(-2, 70) | integers
flags = st.booleans()


def _some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def _few(strategy: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[list[Any]]:
    return st.lists(strategy, max_size=most)


models = st.builds(
    Model,
    ids,
    st.sampled_from(sorted(STATUSES)) | texts,
    harness=_some(texts),
    devices=_some(_few(indices)),
    vram_used_mb=_some(numbers),
    capabilities=_some(_few(ids)),
    limit=_some(st.builds(Limit, _some(integers), _some(integers), _some(integers))),
    cost=_some(st.builds(Cost, _some(numbers), _some(numbers))),
    tool_call=_some(flags),
    servable=_some(st.builds(Servable, _some(flags), _some(texts), _some(texts))),
    progress=_some(st.builds(Progress, _some(texts), _some(numbers))),
    error=_some(texts),
)
gauges = st.builds(
    DeviceHealth, indices, _some(numbers), _some(numbers), _some(numbers), _some(numbers)
)
loads = st.builds(
    ModelLoad,
    ids,
    _some(integers),
    _some(integers),
    _some(integers),
    _some(integers),
    _some(integers),
    _some(integers),
    _some(numbers),
    _some(numbers),
)
activations = st.builds(
    Activation,
    _some(st.sampled_from(["pre_warming", "ready"]) | texts),
    pending=_some(_few(ids)),
    in_progress=_some(ids),
    completed=_some(_few(ids)),
    failed=_some(_few(st.builds(FailedActivation, ids, _some(texts)))),
)
healths = st.builds(
    Health, _some(numbers), _some(_few(gauges)), _some(activations), _some(_few(loads))
)
devices = st.builds(DeviceInfo, indices, numbers, _some(texts), _some(texts), _some(texts))
discoveries = st.builds(
    Discovery,
    _few(devices),
    hostname=_some(texts),
    os=_some(texts),
    harnesses=_some(_few(ids)),
    cuda_unavailable_reason=_some(texts),
    max_prompt_tokens=_some(integers),
)


def observations(sent: float = 10.0) -> st.SearchStrategy[Observation]:
    """Polls that were sent then and took a tenth of a second."""
    answered = st.builds(
        Observation,
        st.just(sent),
        st.just(sent + 0.1),
        models=_few(models),
        health=_some(healths),
        discovery=_some(discoveries),
        health_failure=_some(texts),
        discovery_failure=_some(texts),
    )
    failed = st.builds(
        Observation, st.just(sent), st.just(sent + 0.1), failure=_some(texts), health=_some(healths)
    )
    return answered | answered | answered | failed
