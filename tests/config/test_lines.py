from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.lines import KeyPath, key_lines

TEXT = r'''# a comment
top = 1
[gateway]
listen = "x" # [not.a.table]
"quoted key" = 'it'
a.b = 2
long = [ # a comment with a ] in it
  "]", ']',
  { x = "[[no]]" },
]
words = """
[fake]
listen = 3
\""""""
after = 1

[[neurons]]
name = "one"
  [[neurons]]
  name = "two"
  inner = { a = 1, b = 2 }

[neurons.deep]
x = 1
[[neurons.list]]
y = 2
[ spaced . out ]
z = QQQ
[fake]
QQQ
end = 2'''.replace("QQQ", "'" * 3)


def test_every_key_is_found_on_its_line() -> None:
    tomllib.loads(TEXT)
    text = TEXT.splitlines()
    expected: dict[KeyPath, str] = {
        ("top",): "top = 1",
        ("gateway",): "[gateway]",
        ("gateway", "listen"): "listen = ",
        ("gateway", "quoted key"): '"quoted key"',
        ("gateway", "a"): "a.b",
        ("gateway", "a", "b"): "a.b",
        ("gateway", "long"): "long",
        ("gateway", "long", 0): '  "]"',
        ("gateway", "long", 1): '  "]"',
        ("gateway", "long", 2): "  { x",
        ("gateway", "long", 2, "x"): "  { x",
        ("gateway", "words"): "words",
        ("gateway", "after"): "after",
        ("neurons",): "[[neurons]]",
        ("neurons", 0): "[[neurons]]",
        ("neurons", 0, "name"): 'name = "one"',
        ("neurons", 1): "  [[neurons]]",
        ("neurons", 1, "name"): '  name = "two"',
        ("neurons", 1, "inner"): "  inner",
        ("neurons", 1, "inner", "a"): "  inner",
        ("neurons", 1, "inner", "b"): "  inner",
        ("neurons", 1, "deep"): "[neurons.deep]",
        ("neurons", 1, "deep", "x"): "x = 1",
        ("neurons", 1, "list"): "[[neurons.list]]",
        ("neurons", 1, "list", 0): "[[neurons.list]]",
        ("neurons", 1, "list", 0, "y"): "y = 2",
        ("spaced",): "[ spaced",
        ("spaced", "out"): "[ spaced",
        ("spaced", "out", "z"): "z = ",
        ("spaced", "out", "end"): "end = 2",
    }
    found = key_lines(TEXT)
    assert set(found) == set(expected)
    for path, start in expected.items():
        assert text[found[path] - 1].startswith(start), path


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_nothing_has_no_lines(text: str) -> None:
    assert key_lines(text) == {}


def test_a_table_that_was_implied_before_has_the_line_of_its_own_header() -> None:
    assert key_lines("[a.b]\nx = 1\n[a]\ny = 1") == {
        ("a", "b"): 1,
        ("a", "b", "x"): 2,
        ("a",): 3,
        ("a", "y"): 4,
    }


keys = st.text("abc_- .\"'é", min_size=1, max_size=4)
scalars = (
    st.integers(-9, 9)
    | st.booleans()
    | st.text("ab\"'\\[]{}#=\n ,.", max_size=12)
    | st.lists(st.text("[]#\"'", max_size=4), max_size=3)
)
tables = st.dictionaries(keys, scalars, max_size=4)
documents = st.dictionaries(keys, tables | st.lists(tables, min_size=1, max_size=3), max_size=4)


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return {path} - {()} | {found for key, each in inner for found in paths(each, (*path, key))}


@given(documents)
def test_the_scanner_sees_the_keys_that_tomllib_sees(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    found = key_lines(text)
    assert set(found) == paths(tomllib.loads(text))
    for path, line in found.items():
        if isinstance(path[-1], str) and path[-1].isidentifier():
            assert path[-1] in text.splitlines()[line - 1]
