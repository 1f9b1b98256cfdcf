"""The events that end a Responses stream: one id, rising numbers, every required field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortexd.wire.responses import failure
from cortexd.wire.sse import event
from tests.gateway.dialects import RESPONSES

ERROR = {"code": "upstream_interrupted", "message": "The answer broke off."}
# As OpenAI's OpenAPI description requires them.
REQUIRED = {
    "id",
    "object",
    "created_at",
    "status",
    "error",
    "incomplete_details",
    "instructions",
    "metadata",
    "model",
    "output",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
}


def failed(head: bytes = b"", tail: bytes | None = None) -> list[dict[str, Any]]:
    said = failure(
        ERROR,
        request_id="req_1",
        model="m",
        now=7,
        head=head,
        tail=head if tail is None else tail,
    )
    events = [json.loads(each.partition(b"data: ")[2]) for each in said.split(b"\n\n")[:-1]]
    for each in events:
        assert each["response"].keys() >= REQUIRED
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"] == ERROR
    return events


def created(**fields: Any) -> bytes:
    response = {"id": "resp_e", "object": "response", "created_at": 3, "model": "e"} | fields
    data = {"type": "response.created", "response": response, "sequence_number": 0}
    return event("response.created", json.dumps(data).encode())


def test_failure_without_an_answer_creates_the_response_first() -> None:
    first, last = failed()
    assert (first["type"], first["sequence_number"], last["sequence_number"]) == (
        "response.created",
        0,
        1,
    )
    assert first["response"]["status"] == "in_progress"
    assert first["response"]["error"] is None
    for each in (first, last):
        assert (each["response"]["id"], each["response"]["created_at"]) == ("resp_req_1", 7)
        assert each["response"]["model"] == "m"


@pytest.mark.parametrize("count", range(1, 9))
def test_failure_goes_on_with_the_id_and_the_numbers_of_the_engine(count: int) -> None:
    sent = b"".join(each + b"\n\n" for each in RESPONSES.answer.split(b"\n\n")[:count])
    (last,) = failed(sent)
    assert last["sequence_number"] == count
    assert last["response"]["id"] == "resp_engine"
    assert last["response"]["created_at"] == 1


def test_failure_keeps_what_the_engine_says_of_the_response() -> None:
    sent = created(tools=[{"type": "function", "name": "f"}], temperature=0.5, error=None)
    (last,) = failed(sent)
    assert last["response"]["tools"] == [{"type": "function", "name": "f"}]
    assert last["response"]["temperature"] == 0.5


def test_failure_finds_the_id_in_a_first_event_that_is_cut() -> None:
    sent = created(instructions="x" * 9000, metadata={"id": "no"})
    (last,) = failed(sent[:4096], sent[-4096:])
    assert last["response"]["id"] == "resp_e"
    assert last["sequence_number"] == 1


def test_sequence_number_in_answer_text_is_ignored() -> None:
    text = {"delta": '"sequence_number": 99', "sequence_number": 4}
    (last,) = failed(created() + event("x", json.dumps(text).encode()))
    assert last["sequence_number"] == 5


def test_engine_that_does_not_number_its_events_gets_a_number_of_none() -> None:
    sent = created().replace(b', "sequence_number": 0', b"")
    (last,) = failed(sent)
    assert last["sequence_number"] == 0


@pytest.mark.parametrize(
    "sent", [b"data: {broken\n\n", b'data: {"response": 3}\n\n', b"data: \xff\n\n"]
)
def test_failure_after_what_can_not_be_read_is_the_gateways_own(sent: bytes) -> None:
    (last,) = failed(sent)
    assert last["response"]["id"] == "resp_req_1"


def test_failure_after_half_of_the_first_event_creates_the_response_under_its_id() -> None:
    first, last = failed(created()[:90])
    assert (first["type"], last["type"]) == ("response.created", "response.failed")
    assert first["response"]["id"] == last["response"]["id"] == "resp_e"


def test_number_that_is_not_known_is_larger_than_any_before() -> None:
    """The stream broke off in an event that is longer than what is kept of it."""
    head = created() + event("x", b'{"sequence_number":1}')
    (last,) = failed(head, b"x" * 4096)
    assert last["sequence_number"] == 2**31 - 1
    assert last["response"]["id"] == "resp_e"


def test_comments_of_the_engine_are_no_event() -> None:
    (last,) = failed(b": prefill 1/2\n\n" + created())
    assert (last["response"]["id"], last["response"]["created_at"]) == ("resp_e", 3)
    first, last = failed(b": prefill 1/2\n\n" + created()[:90])
    assert first["type"] == "response.created"
