from __future__ import annotations

import datetime
from typing import Annotated, Any

import msgspec
import pytest

from cortexd.config.decode import Problem, decode, did_you_mean, quoted
from cortexd.config.units import Bound, Count, Duration


class Inner(msgspec.Struct, frozen=True):
    name: str
    wait: Duration = Duration(1)
    tries: Count | None = 1
    share: Annotated[float, Bound(0, is_open=True)] = 1.0


class Outer(msgspec.Struct, frozen=True):
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    words: dict[str, str] = {}
    number: int | float | None = None


def problems(document: dict[str, Any]) -> list[Problem]:
    return decode(document, Outer)[1]


def test_a_document_becomes_the_struct() -> None:
    value, found = decode(
        {"inner": {"name": "a", "wait": "2s"}, "many": [{"name": "b"}], "words": {"x": "y"}}, Outer
    )
    assert found == []
    assert value == Outer(Inner("a", Duration(2)), (Inner("b"),), {"x": "y"})


def test_unknown_keys_alone_leave_a_struct_to_check_further() -> None:
    value, found = decode({"numbr": 1}, Outer)
    assert value == Outer()
    assert [(problem.key, problem.found) for problem in found] == [
        (("numbr",), 'unknown key; did you mean "number"?')
    ]


@pytest.mark.parametrize(
    ("document", "key", "found"),
    [
        ({"inner": 3}, ("inner",), "found 3"),
        ({"inner": {}}, ("inner", "name"), "missing"),
        ({"inner": {"name": "a", "tries": 0}}, ("inner", "tries"), "found 0"),
        ({"inner": {"name": "a", "share": 0}}, ("inner", "share"), "found 0"),
        ({"inner": {"name": "a", "tries": 1 << 63}}, ("inner", "tries"), "found a number beyond"),
        ({"number": 10**5000}, ("number",), "found a number beyond 64 bits"),
        ({"inner": {"name": "a", "wait": f"{'9' * 400}h"}}, ("inner", "wait"), "found "),
        ({"many": {"name": "a"}}, ("many",), "found a table"),
        ({"many": [{"name": "a"}, {"name": 1.5}]}, ("many", 1, "name"), "found 1.5"),
        ({"many": ["a"]}, ("many", 0), 'found "a"'),
        ({"words": []}, ("words",), "found an array"),
        ({"words": {"x": True}}, ("words", "x"), "found true"),
        ({"number": float("nan")}, ("number",), "found nan"),
        ({"number": datetime.date(2026, 1, 1)}, ("number",), "found a date or time"),
    ],
)
def test_a_problem_says_where_and_what_was_found(
    document: dict[str, Any], key: tuple[str | int, ...], found: str
) -> None:
    (problem,) = problems(document)
    assert problem.key == key
    assert problem.found.startswith(found)


def test_a_bound_is_part_of_what_is_allowed() -> None:
    (problem,) = problems({"inner": {"name": "a", "tries": -1}})
    assert problem.allowed == "a whole number, 1 or more"
    (problem,) = problems({"inner": {"name": "a", "share": -1.5}})
    assert problem.allowed == "a number, more than 0"


def test_every_problem_is_found_in_one_go() -> None:
    assert len(problems({"inner": {"wait": 1}, "many": 1, "words": 2, "number": "x", "z": 0})) == 6


def test_what_is_quoted_is_short_and_harmless_on_a_terminal() -> None:
    assert quoted("a\x1b[31m\u202e") == '"a\\u001b[31m\\u202e"'
    assert len(quoted("x" * 1000)) == 82


def test_a_guess_is_made_only_where_something_is_like_it() -> None:
    assert did_you_mean("LISTNE", ["listen", "other"]) == '; did you mean "listen"?'
    assert did_you_mean("BEAT", ["other", "BEAST"]) == '; did you mean "BEAST"?'
    assert did_you_mean("zzz", ["listen"]) == ""
