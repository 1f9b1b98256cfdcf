from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.check import load_gateway
from cortexd.config.edit import CantEdit, add_neuron, remove_neuron
from cortexd.config.source import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "etc/cortex.toml").read_text()
NEW = {"name": "new", "endpoint": "http://new:13131"}
BLOCK = '[[neurons]]\nname = "new"\nendpoint = "http://new:13131"\n'

TWO = """# mine
[[neurons]]   # first
name = "a"
endpoint = "http://a:1"
# weight = 2

# second
[[neurons]]
name = "b"
endpoint = "http://b:1"

# models
[[models]]
id = "m"
"""


def file(place: Path, text: str = TWO) -> Path:
    made = place / "cortex.toml"
    made.write_text(text)
    return made


def test_a_node_comes_behind_the_others_and_all_else_stays(tmp_path: Path) -> None:
    path = file(tmp_path)
    add_neuron(path, NEW | {"token_file": "t", "weight": 2.0}, {"CORTEX_TOKEN__NEW": "x"})
    here = 'endpoint = "http://b:1"\n'
    assert path.read_text() == TWO.replace(
        here, here + "\n" + BLOCK + 'token_file = "t"\nweight = 2.0\n'
    )


def test_the_first_node_comes_at_the_end(tmp_path: Path) -> None:
    path = file(tmp_path, "# none yet\n[gateway]\n")
    add_neuron(path, NEW, {})
    assert path.read_text() == "# none yet\n[gateway]\n\n" + BLOCK
    path = file(tmp_path, "")
    add_neuron(path, NEW, {})
    assert path.read_text() == BLOCK


def test_added_and_removed_the_example_is_as_it_was(tmp_path: Path) -> None:
    path = file(tmp_path, EXAMPLE)
    add_neuron(path, NEW, {})
    assert "new" in {node.name for node in load_gateway(path, {}).neurons}
    assert all(line in path.read_text() for line in EXAMPLE.splitlines())
    remove_neuron(path, "new", {})
    assert path.read_text() == EXAMPLE


def test_a_removed_node_takes_only_its_own_comments_along(tmp_path: Path) -> None:
    path = file(tmp_path)
    remove_neuron(path, "a", {})
    assert path.read_text() == "# mine\n" + TWO[TWO.index("# second") :]
    remove_neuron(path, "b", {})
    assert path.read_text() == "# mine\n# second\n" + TWO[TWO.index("# models") :]


def test_owner_mode_and_link_stay_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = file(tmp_path / "real")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 12345, 54321)
    before = real.stat()
    link = tmp_path / "link.toml"
    link.symlink_to(real)
    add_neuron(link, NEW, {})
    after = real.stat()
    assert link.is_symlink()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert sorted(each.name for each in (tmp_path / "real").iterdir()) == ["cortex.toml"]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_windows_lines_and_a_byte_order_mark_stay(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "cortex.toml"
    path.write_bytes(mark + TWO.replace("\n", "\r\n").encode())
    add_neuron(path, NEW, {})
    remove_neuron(path, "new", {})
    assert path.read_bytes() == mark + TWO.replace("\n", "\r\n").encode()


@pytest.mark.parametrize(
    ("neuron", "words"),
    [
        (NEW | {"name": "a"}, '"a" is used twice, first in FILE:3; choose another'),
        (NEW | {"endpoint": "new:1"}, 'found "new:1" (allowed: a URL like'),
        (NEW | {"weight": -1.0}, "found -1.0 (allowed: a number, more than 0)"),
        (NEW | {"weight": float("nan")}, "found nan (allowed: a finite number)"),
        (NEW | {"token_file": "none"}, "none can't be read: No such file"),
    ],
)
def test_what_check_would_refuse_is_never_written(
    tmp_path: Path, neuron: dict[str, object], words: str
) -> None:
    path = file(tmp_path)
    with pytest.raises((ConfigError, CantEdit)) as refused:
        add_neuron(path, neuron, {})
    assert words.replace("FILE", str(path)) in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert path.read_text() == TWO
    assert list(tmp_path.iterdir()) == [path]


def test_a_node_that_a_model_is_pinned_to_stays(tmp_path: Path) -> None:
    path = file(tmp_path, TWO + "pinned_on = ['b']\n")
    with pytest.raises(ConfigError, match=r":\d+: models\[0\].pinned_on\[0\]: no neuron"):
        remove_neuron(path, "b", {})
    assert "http://b:1" in path.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("neurons = [{name = 'a', endpoint = 'http://a:1'}]\n", r"as \[\[neurons\]\] tables"),
        (TWO.replace("\n", "\r\n", 1), "make them all alike"),
        ("[[neurons]", "not valid TOML"),
        ("", "no neuron is called"),
        (TWO.replace('"a"', '"aa"'), 'did you mean "aa"'),
    ],
)
def test_what_cant_be_edited_is_left_alone(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cortex.toml"
    path.write_bytes(text.encode())
    with pytest.raises((CantEdit, ConfigError), match=words):
        remove_neuron(path, "a", {})
    assert path.read_bytes() == text.encode()


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(names)
def test_whatever_a_node_is_called_it_is_added_as_that_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = file(tmp_path_factory.mktemp("any"))
    try:
        add_neuron(path, NEW | {"name": name}, {})
    except ConfigError:
        assert path.read_text() == TWO
    else:
        assert [node.name for node in load_gateway(path, {}).neurons] == ["a", "b", name]
        remove_neuron(path, name, {})
        assert path.read_text() == TWO
