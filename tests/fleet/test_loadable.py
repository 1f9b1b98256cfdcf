from __future__ import annotations

import pytest

from cortexd.config.catalogue import Profile
from cortexd.fleet.loadable import files_of, has_file, no_file_reason
from cortexd.fleet.snapshot import Ledger
from cortexd.wire.neuron import Discovery, Loadable
from tests.fleet.fleet import hardware, node


def described(*loadable: Loadable) -> Discovery:
    return hardware(24000, loadable=list(loadable))


FILES = described(
    Loadable("m", ["", "Q8_0"]),
    Loadable("org/one", ["Q4_K_M"]),
    Loadable("two", ["Q4_0", "q8_0"]),
    Loadable("any"),
)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (Profile("m"), True),
        (Profile("m", quant="q8_0"), True),
        (Profile("m", quant="Q4_0"), False),
        (Profile("org/one"), True),
        (Profile("org/one", source="hf"), True),
        (Profile("org/one", source="hf", quant="Q8_0"), False),
        (Profile("one"), False),
        (Profile("two"), False),
        (Profile("two", quant="Q8_0"), True),
        (Profile("any", quant="Q8_0"), True),
        (Profile("x:any"), True),
        (Profile("other"), False),
    ],
)
def test_a_model_has_a_file_where_the_node_names_it_in_its_quant(
    profile: Profile, expected: bool
) -> None:
    one = node("a", discovery=FILES)
    assert has_file(profile, one) is expected
    assert (no_file_reason(profile, one, Ledger()) is None) is expected


def test_a_file_named_like_a_source_and_an_id_is_found_by_both() -> None:
    one = node("a", discovery=described(Loadable("hf:m", [""])))
    assert has_file(Profile("m", source="hf"), one) is True
    assert has_file(Profile("m"), one) is False


def test_what_a_node_does_not_say_is_unknown_not_absent() -> None:
    one = node("a")
    assert one.files is None
    assert files_of(hardware(24000)) is None
    assert has_file(Profile("m"), one) is None
    assert no_file_reason(Profile("m"), one, Ledger()) is None


@pytest.mark.parametrize("status", ["loading", "loaded", "reloading", "recovering"])
def test_a_resident_model_needs_no_file(status: str) -> None:
    assert has_file(Profile("x"), node("a", {"x": status}, discovery=FILES)) is True


@pytest.mark.parametrize("status", ["unloaded", "failed", "unknown"])
def test_configured_model_without_file_is_404(status: str) -> None:
    assert has_file(Profile("x"), node("a", {"x": status}, discovery=FILES)) is False
    assert has_file(Profile("m"), node("a", {"m": status}, discovery=FILES)) is True


def test_last_file_list_of_a_down_node_holds() -> None:
    assert has_file(Profile("m"), node("a", up=False, discovery=FILES)) is True
    assert has_file(Profile("x"), node("a", up=False, discovery=FILES)) is False


def test_the_reason_names_the_quants_that_are_there() -> None:
    def reason(profile: Profile) -> str | None:
        return no_file_reason(profile, node("a", discovery=FILES), Ledger())

    assert reason(Profile("x")) == "has no file for 'x'"
    assert reason(Profile("org/one", quant="Q8_0")) == (
        "has no file for 'org/one' with quant 'Q8_0', only Q4_K_M"
    )
    assert reason(Profile("two")) == "has several files for 'two' (Q4_0, Q8_0): set quant"


def test_what_a_node_answered_to_a_load_counts_more_than_its_list() -> None:
    ledger = Ledger(unloadable={("a", "m"): "No file for 'm'"})
    assert no_file_reason(Profile("m"), node("a", discovery=FILES), ledger) == "No file for 'm'"
    assert no_file_reason(Profile("m"), node("b", discovery=FILES), ledger) is None
