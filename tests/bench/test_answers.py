"""Which answers count as whole, byte for byte and for gateways that write their own JSON."""

from __future__ import annotations

import json

import pytest

from bench import answers

WHOLE = answers.stream(3, 190)


def test_the_answers_are_of_the_size_they_are_said_to_be() -> None:
    assert {len(answers.event(number, 190)) for number in (0, 7, 99_999)} == {190}
    assert 550 <= len(answers.plain()) <= 750
    assert json.loads(answers.plain())["usage"]
    assert all(json.loads(line[6:]) for line in WHOLE.split(b"\n\n")[:-2])


def test_what_was_sent_is_whole() -> None:
    assert not answers.fault(WHOLE, events=3)
    assert not answers.fault(answers.plain(), events=None)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        WHOLE.removesuffix(answers.DONE),
        WHOLE[:-1],
        WHOLE + answers.DONE,
        WHOLE.replace(answers.event(1), b""),
        answers.stream(2),
        b"",
    ],
    ids=["no done", "a byte short", "two ends", "a hole", "an event short", "nothing"],
)
def test_a_stream_that_lacks_anything_is_not_whole(body: bytes, exact: bool) -> None:
    assert answers.fault(body, events=3, exact=exact)


def test_one_changed_byte_is_not_what_was_sent() -> None:
    assert answers.fault(WHOLE.replace(b"00001", b"00009"), events=3)
    assert answers.fault(answers.plain() + b" ", events=None)


def test_a_gateway_may_write_its_own_json_around_the_same_content() -> None:
    rewritten = WHOLE.replace(b'"created":1750000000', b'"created": 2, "service_tier": null')
    assert answers.fault(rewritten, events=3)
    assert not answers.fault(rewritten, events=3, exact=False)
    cut = answers.plain().replace(b"And so on. ", b"", 1)
    assert answers.fault(cut, events=None, exact=False)
