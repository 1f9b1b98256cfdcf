from __future__ import annotations

import json
from pathlib import Path

import pytest

from cortexd.config.check import load_gateway, read_gateway, read_neuron
from cortexd.config.show import as_json, as_toml, settings

ROOT = Path(__file__).parents[2]
TEXT = """[gateway]
listen = "127.0.0.1:1"
[[neurons]]
name = "a b"
endpoint = "http://a:1"
token_file = "a.token"
[[models]]
id = "m"
limit = { context = 10 }
capabilities = ["text"]
[aliases]
"x/y" = "m"
"""


def test_what_is_shown_means_the_same(tmp_path: Path) -> None:
    file, shown = tmp_path / "cortex.toml", tmp_path / "shown.toml"
    for text in (TEXT, (ROOT / "etc/cortex.toml").read_text()):
        file.write_text(text)
        loaded = read_gateway(file, {"CORTEX_POLLING__INTERVAL": "7s"}, with_files=False)
        shown.write_text(as_toml(settings(loaded, {})))
        assert load_gateway(shown, {}, with_files=False) == loaded.value
    loaded_neuron = read_neuron(ROOT / "etc/neuron.toml", {})
    shown.write_text(as_toml(settings(loaded_neuron, {})))
    assert read_neuron(shown, {}).value == loaded_neuron.value


def test_every_key_says_where_its_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(TEXT)
    environ = {"CORTEX_POLLING__INTERVAL": "7s"}
    text = as_toml(settings(read_gateway(file, environ, with_files=False), environ))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        f'listen = "127.0.0.1:1" # {file}:2',
        'max_body = "64MiB" # default',
        "# metrics_listen is unset # default",
        'interval = "7s" # CORTEX_POLLING__INTERVAL',
        f'name = "a b" # {file}:4',
        f"# the token is ******** # {tmp_path / 'a.token'}",
        f"limit = {{context = 10}} # {file}:9",
        f'"x/y" = "m" # {file}:12',
    ):
        assert expected in lines
    assert text.index("[[neurons]]") < text.index("[[models]]")


def test_programs_read_it_as_json(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(TEXT)
    environ = {"CORTEX_TOKEN__A_B": "s3cret"}
    found = as_json(settings(read_gateway(file, environ), environ))
    assert "s3cret" not in json.dumps(found)
    by_key = {each["key"]: each for each in found}
    assert by_key["gateway.listen"] == {
        "key": "gateway.listen",
        "value": "127.0.0.1:1",
        "source": "file",
        "file": str(file),
        "line": 2,
        "variable": None,
    }
    assert by_key["neurons[0].token"]["variable"] == "CORTEX_TOKEN__A_B"
    assert by_key["gateway.metrics_listen"]["value"] is None
    assert by_key["gateway.max_body"]["source"] == "default"


@pytest.mark.parametrize("name", ["hf_token", "api_key", "password"])
def test_what_is_secret_by_its_name_is_masked(tmp_path: Path, name: str) -> None:
    file = tmp_path / "neuron.toml"
    file.write_text(f"[[models]]\nid='m'\npath='p'\nargs={{{name}='s3cret', flash=true}}\n")
    text = as_toml(settings(read_neuron(file, {}), {}))
    assert "s3cret" not in text
    assert f'{name} = "********"' in text
    assert "flash = true" in text


def test_a_long_alias_is_shown_whole(tmp_path: Path) -> None:
    file, shown = tmp_path / "cortex.toml", tmp_path / "shown.toml"
    file.write_text(f"[aliases]\n'{'a b' * 40}' = 'm'\n\"\u00e4\\\"\" = 'm'\n")
    loaded = read_gateway(file, {})
    shown.write_text(as_toml(settings(loaded, {})))
    assert load_gateway(shown, {}).aliases == loaded.value.aliases
