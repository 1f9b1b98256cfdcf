from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from cortexd.daemon.access import AccessLine, AccessLog
from tests.daemon.journal import journal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(model: str = "m", **fields: object) -> AccessLine:
    known = {"ts": 1.5, "level": "info", "request_id": "r", "path": "/v1", "status": 200}
    return AccessLine(**known | {"duration_s": 0.25, "model": model} | fields)  # type: ignore[arg-type]


def test_lines_are_json_without_what_is_not_known() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    log.write([line(node="a"), line()])
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first == {
        "logger": "cortexd.access",
        "ts": 1.5,
        "level": "info",
        "request_id": "r",
        "path": "/v1",
        "status": 200,
        "duration_s": 0.25,
        "model": "m",
        "node": "a",
    }
    assert "node" not in second


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "words"])
def test_a_line_is_one_line_of_ascii_whatever_a_name_holds(stream: io.StringIO) -> None:
    log = AccessLog(stream)
    log.write([line("evil\r\n\x1b[31m\u202ename")])
    text = stream.getvalue()
    assert text.isascii()
    assert text[:-1].isprintable()
    assert text.endswith("\n")


def test_on_a_terminal_it_is_words() -> None:
    stream = Terminal()
    log = AccessLog(stream)
    log.write([line(node="a", first_byte_s=0.1)])
    words = stream.getvalue().split(" ", 1)[1]
    assert words == "INFO    200 m a 0.250s /v1 request_id=r first_byte_s=0.1\n"


def test_in_the_journal_a_line_has_a_priority_and_leads_with_what_people_look_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal(tmp_path, monkeypatch) as stream:
        log = AccessLog(stream)
        log.write([line(node="a", route="loaded"), line("x y", status=503, code="no_room")])
    assert stream.getvalue() == (
        "<6>200 m a 0.250s /v1 request_id=r route=loaded\n"
        "<6>503 x y - 0.250s /v1 request_id=r code=no_room\n"
    )


def test_a_closed_stream_harms_nothing() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    stream.close()
    log.write([line()])
    log.write([line()])
