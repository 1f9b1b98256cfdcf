"""Tables as a terminal shows them: as wide as it is, in what it can show, and never a command."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.cli.screen import Cell, Screen, plain

PLAIN = Screen(is_plain=True)


class Out(io.TextIOWrapper):
    """A stream that may be a terminal."""

    def __init__(self, *, is_terminal: bool = True, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


# What there is.


@pytest.mark.parametrize(
    ("environ", "screen"),
    [
        ({"COLUMNS": "72"}, Screen(72, True, False)),
        ({"COLUMNS": "72", "NO_COLOR": "1"}, Screen(72, False, False)),
        ({"COLUMNS": "72", "NO_COLOR": ""}, Screen(72, True, False)),
        ({"COLUMNS": "72", "TERM": "dumb"}, Screen(72, False, False)),
        ({"COLUMNS": "wide"}, Screen(None, True, False)),
        ({"COLUMNS": "0"}, Screen(None, True, False)),
    ],
)
def test_a_terminal_has_a_width_and_colours_unless_it_says_otherwise(
    environ: dict[str, str], screen: Screen
) -> None:
    assert Screen.of(Out(), environ) == screen


def test_a_pipe_is_as_wide_as_it_takes_and_has_no_colours() -> None:
    out = Out(is_terminal=False)
    assert Screen.of(out, {"COLUMNS": "72"}) == Screen(None, False, False)


@pytest.mark.parametrize(
    ("encoding", "is_plain"),
    [("utf-8", False), ("UTF8", False), ("ascii", True), ("latin-1", True)],
)
def test_what_is_not_unicode_gets_ascii(encoding: str, is_plain: bool) -> None:
    out = Out(encoding=encoding)
    assert Screen.of(out, {}).is_plain is is_plain
    print("名前 █", file=out, flush=True)  # whatever a name holds, it does not raise


# Bars and colours.


@pytest.mark.parametrize(
    ("share", "bar"),
    [(0.0, "----"), (0.5, "##--"), (1.0, "####"), (7.0, "####"), (-1.0, "----")],
)
def test_a_bar_is_as_full_as_its_share(share: float, bar: str) -> None:
    assert PLAIN.bar(share, 4) == bar
    assert Screen().bar(share, 4) == bar.replace("#", "█").replace("-", "░")


def test_only_a_screen_with_colours_is_painted() -> None:
    assert Screen(has_colours=True).paint("up", "green") == "\x1b[32mup\x1b[0m"
    assert Screen().paint("up", "green") == "up"


# Tables.


def test_columns_stand_under_each_other() -> None:
    rows = [["a", Cell("1", to_the_right=True)], ["longer", Cell("12345", "red", True)]]
    assert PLAIN.table(["NAME", "NO"], rows, [0]) == ("NAME    NO\na           1\nlonger  12345")


def test_colours_move_nothing() -> None:
    rows = [[Cell("a", "red"), Cell("1", "green", True)], ["bb", "22"]]
    coloured = Screen(has_colours=True).table(["N", "M"], rows, [0])
    assert "\x1b[31ma\x1b[0m " in coloured
    bare = coloured
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m"):
        bare = bare.replace(code, "")
    assert [line.rstrip() for line in bare.splitlines()] == (
        PLAIN.table(["N", "M"], rows, [0]).splitlines()
    )


def test_a_name_that_is_too_long_is_cut_before_anything_else() -> None:
    rows = [["a-very-long-name", "loaded"]]
    assert Screen(18).table(["MODEL", "STATUS"], rows, [0]) == (
        "MODEL       STATUS\na-very-lo…  loaded"
    )
    assert PLAIN._replace(width=18).table(["MODEL", "STATUS"], rows, [0]) == (
        "MODEL       STATUS\na-very-lo~  loaded"
    )


def test_a_short_row_goes_on_below_itself() -> None:
    rows = [["a", "up", "x"], ["", "it has a lot of words to say"]]
    assert Screen(20).table(["NODE", "STATE", ""], rows, [0]) == (
        "NODE  STATE\na     up     x\n      it has a lot\n      of words to\n      say"
    )
    assert "it has a lot of words to say" in Screen().table(["NODE", "STATE", ""], rows, [0])


def test_wide_letters_count_twice_and_marks_on_letters_not_at_all() -> None:
    rows = [["名前", "x"], ["e\N{COMBINING ACUTE ACCENT}", "x"], ["abcd", "x"]]
    assert Screen().table(["", ""], rows, [0]).splitlines()[1:] == [
        "名前  x",
        "e\N{COMBINING ACUTE ACCENT}     x",
        "abcd  x",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert PLAIN.table(["A", "B"], [], [0]) == "A  B"


CELLS = st.text(max_size=30) | st.builds(
    Cell, st.text(max_size=30), st.sampled_from(["", "red"]), st.booleans()
)


@given(
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5),
    width=st.integers(1, 100),
)
def test_no_line_is_wider_than_the_screen_or_holds_a_command(
    rows: list[list[Cell | str]], width: int
) -> None:
    table = Screen(width, is_plain=True).table(["A", "B", "C", "D"], rows, [0, 2])
    assert all(letter.isprintable() for letter in table.replace("\n", ""))
    # Letters of width 2 aside, for which Python has no measure.
    if table.isascii():
        assert all(len(line) <= max(width, 8) for line in table.split("\n"))


@given(text=st.text())
def test_plain_text_is_printable_whatever_it_was(text: str) -> None:
    assert plain(text).isprintable()
    assert len(plain(text)) == len(text)


def test_a_text_is_wrapped_where_there_is_an_edge() -> None:
    assert Screen(12).wrapped("some words to read") == "some words\nto read"
    assert Screen().wrapped("some \x1b[2J words") == "some \N{REPLACEMENT CHARACTER}[2J words"
