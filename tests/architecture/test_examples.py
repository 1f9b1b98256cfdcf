"""The example configurations decode, and show every key there is."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from cortexd.config import gateway, neuron
from cortexd.config.check import load_gateway, read_neuron

ROOT = Path(__file__).parents[2]


def keys(kind: type[msgspec.Struct]) -> list[str]:
    """Every key of every table that a configuration may have."""
    found = []
    for field in msgspec.structs.fields(kind):
        inner = [field.type, *typing.get_args(field.type)]
        structs = [it for it in inner if isinstance(it, type) and issubclass(it, msgspec.Struct)]
        found.append(field.name)
        for struct in structs:
            found += keys(struct)
    return found


@pytest.mark.parametrize("name", ["cortex.toml", "neuron.toml"])
def test_example_sets_nothing_that_is_no_default(name: str) -> None:
    file = ROOT / "etc" / name
    if name == "cortex.toml":
        assert load_gateway(file, {}) == gateway.Config()
    else:
        assert read_neuron(file, {}).value == neuron.Config()


def uncommented(text: str) -> str:
    return re.sub(r'^# ?(?=\w+ = |"[^"]+" = |\[)', "", text, flags=re.MULTILINE)


def test_the_examples_decode_with_every_default_taken_at_its_word(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(uncommented((ROOT / "etc/cortex.toml").read_text()))
    (tmp_path / "models.toml").touch()
    shown = load_gateway(file, {}, with_files=False)
    assert [node.name for node in shown.neurons] == ["beast", "attic"]
    assert len(shown.models) == 2
    assert shown.aliases
    default = gateway.Config()
    asked = msgspec.structs.replace(shown.gateway, metrics_listen=None, state_dir=None)
    assert asked == default.gateway
    assert msgspec.structs.replace(shown.eviction, idle_ttl=None) == default.eviction
    assert msgspec.structs.replace(shown.upstream, ca_file=None) == default.upstream
    for table in ("polling", "loading", "routing", "security", "logging"):
        assert getattr(shown, table) == getattr(default, table)
    file.write_text(uncommented((ROOT / "etc/neuron.toml").read_text()))
    assert read_neuron(file, {}, with_files=False).value.models


@pytest.mark.parametrize(
    ("example", "kind"), [("cortex.toml", gateway.Config), ("neuron.toml", neuron.Config)]
)
def test_every_key_is_shown(example: str, kind: type[msgspec.Struct]) -> None:
    text = (ROOT / "etc" / example).read_text()
    missing = [key for key in keys(kind) if not re.search(rf"\b{key}\b", text)]
    assert not missing
