"""What the neuron refuses, next to what the whole house does."""

from __future__ import annotations

from cortexd import errors
from cortexd.errors import Kind
from cortexd.neuron import refusals


def test_every_code_has_one_meaning_in_the_whole_house() -> None:
    own = [kind for kind in vars(refusals).values() if isinstance(kind, Kind)]
    assert len({kind.code for kind in own}) == len(own)
    assert not {kind.code for kind in own} & set(errors.KINDS)
