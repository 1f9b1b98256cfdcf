from __future__ import annotations

import pytest

from cortexd.config.address import parse_listen
from cortexd.config.units import Duration, Size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("1.5m", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("512KiB", 524288), ("64MiB", 67108864), ("1.5GiB", 1610612736)]
)
def test_sizes(text: str, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["", "10", "s", "10 parsecs", "-1s", "1e3s"])
def test_anything_else_says_what_is_allowed(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration with a unit"):
        Duration.parse(text)
    with pytest.raises(ValueError, match="expected a size with a unit"):
        Size.parse(text)


@pytest.mark.parametrize("text", ["1000000h", "9" * 400 + "s"])
def test_a_duration_that_no_timer_takes_is_a_slip(text: str) -> None:
    with pytest.raises(ValueError, match="expected at most 240000h"):
        Duration.parse(text)


def test_a_size_has_an_end_too() -> None:
    with pytest.raises(ValueError, match="expected at most 1048576GiB"):
        Size.parse("9" * 400 + "GiB")


@pytest.mark.parametrize("text", ["500ms", "10s", "90s", "30m", "2h", "0s"])
def test_a_duration_is_written_as_people_write_it(text: str) -> None:
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)
    assert str(Duration.parse(text)) == text


@pytest.mark.parametrize("text", ["7B", "512KiB", "64MiB", "1GiB"])
def test_a_size_is_written_as_people_write_it(text: str) -> None:
    assert str(Size.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8080", ("0.0.0.0", 8080)),
        ("[::1]:0", ("::1", 0)),
        (":8080", ("", 8080)),
        ("beast.internal:65535", ("beast.internal", 65535)),
    ],
)
def test_addresses_to_listen_on(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        "host:",
        "host:x",
        "host:65536",
        "::1:80",
        "a:-1",
        "a..b:1",
        "a b:1",
        "a\0b:1",
        "\u00e4" * 64 + ":1",
        "a:\u0661",
    ],
)
def test_what_is_no_address_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        parse_listen(text)
