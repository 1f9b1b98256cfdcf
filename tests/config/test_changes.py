from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.config.changes import AT_START, Changes, changes, in_use
from cortexd.config.current import Settings
from cortexd.config.gateway import Config, Gateway, Neuron, Polling, Upstream
from cortexd.config.units import Duration

A, B = Neuron("a", "http://a"), Neuron("b", "http://b")


def found(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    return changes(_settings(**before), _settings(**after))


def _settings(tokens: dict[str, str] | None = None, **tables: Any) -> Settings:
    return Settings(Config(**tables), tokens or {})


def test_nothing_is_nothing() -> None:
    same = {"neurons": (A,), "models": (Profile("m"),), "aliases": {"x": "m"}, "tokens": {"a": "t"}}
    assert found(same, same) == Changes()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"polling": Polling(Duration(9))}, "polling.interval changed"),
        ({}, {"gateway": Gateway(listen=":1")}, "gateway.listen changed"),
        ({}, {"models": (Profile("m"),)}, 'models."m" added'),
        ({"models": (Profile("m"),)}, {}, 'models."m" removed'),
        (
            {"models": (Profile("m"),)},
            {"models": (Profile("m", vram_mb=1, quant="q"),)},
            'models."m" changed: quant, vram_mb',
        ),
        ({}, {"aliases": {"x": "m"}}, 'aliases."x" added'),
        ({"aliases": {"x": "m"}}, {"aliases": {"x": "n"}}, 'aliases."x" changed'),
        ({}, {"neurons": (A,)}, 'neurons."a" added'),
        ({"neurons": (A,)}, {"neurons": ()}, 'neurons."a" removed'),
        (
            {"neurons": (A,), "tokens": {"a": "old"}},
            {"neurons": (A,), "tokens": {"a": "new"}},
            'neurons."a" has another token',
        ),
    ],
)
def test_a_change_is_told_as_it_stands_in_the_file(
    before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    seen = found(before, after)
    assert (*(f"{key} changed" for key in seen.keys), *seen.entries) == (words,)


def test_a_node_that_is_reached_in_another_way_is_another_node() -> None:
    moved = msgspec.structs.replace(A, endpoint="http://elsewhere")
    heavier = msgspec.structs.replace(A, weight=2.0, reserve_mb=1)
    assert found({"neurons": (A,)}, {"neurons": (moved,)}).fresh == {"a"}
    assert found({"neurons": (A,)}, {"neurons": (A,), "tokens": {"a": "t"}}).fresh == {"a"}
    assert found({"neurons": (A,)}, {"neurons": (heavier,)}).fresh == set()
    swapped = found({"neurons": (A,)}, {"neurons": (B,)})
    assert (swapped.fresh, swapped.gone) == ({"b"}, {"a"})


def test_what_is_read_once_waits_for_a_restart_and_goes_on_being_said() -> None:
    old = Config()
    new = Config(gateway=Gateway(state_dir="/x"), upstream=Upstream(ca_file="/y", retries=5))
    seen = changes(Settings(old), Settings(new))
    assert seen.restart == ("gateway.state_dir",)
    assert seen.keys == ("upstream.retries", "upstream.ca_file")
    used = in_use(old, new)
    assert (used.gateway.state_dir, used.upstream.ca_file, used.upstream.retries) == (None, "/y", 5)
    assert changes(Settings(used), Settings(new)).restart == seen.restart


def test_every_key_that_waits_for_a_restart_is_one() -> None:
    for key in AT_START:
        table, field = key.split(".")
        assert field in getattr(Config(), table).__struct_fields__


NODES = st.lists(
    st.builds(Neuron, st.sampled_from("abc"), st.sampled_from(["http://1", "http://2"])),
    unique_by=lambda node: node.name,
).map(tuple)
SETTINGS = st.builds(
    Settings,
    st.builds(
        Config,
        neurons=NODES,
        models=st.lists(
            st.builds(Profile, st.sampled_from("mn"), vram_mb=st.integers(0, 1)),
            unique_by=lambda profile: profile.id,
        ).map(tuple),
        aliases=st.dictionaries(st.sampled_from("xy"), st.sampled_from("mn")),
    ),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("st")),
)


@given(SETTINGS, SETTINGS)
def test_whatever_differs_is_told_and_nodes_are_kept_fresh_or_gone(
    before: Settings, after: Settings
) -> None:
    seen = changes(before, after)
    old = {node.name for node in before.config.neurons}
    new = {node.name for node in after.config.neurons}
    assert seen.gone == old - new
    assert new - old <= seen.fresh <= new
    if not seen.entries:
        assert seen.fresh == seen.gone == frozenset()
        assert before.config.aliases == after.config.aliases
