from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortexd.config.logs import Format, Level, Logging
from cortexd.daemon import logs
from tests.daemon.journal import journal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = list(root.handlers), root.level, logging.raiseExceptions
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


def said(stream: io.StringIO, *, level: Level = "info", form: Format = "auto") -> None:
    logs.configure(Logging(level, form), stream)
    log = logging.getLogger("cortexd.test")
    log.debug("quiet")
    log.info("model %s", "evil\r\n\x1b[31m\u202ename", extra={"node": "a\nb", "count": 2})
    try:
        raise ValueError("first\nsecond\x1b[2J")
    except ValueError:
        log.exception("failed")


def test_without_a_terminal_every_event_is_one_line_of_ascii_json() -> None:
    stream = io.StringIO()
    said(stream)
    text = stream.getvalue()
    assert text.isascii()
    first, second = [json.loads(line) for line in text.splitlines()]
    assert first["msg"] == "model evil\r\n\x1b[31m\u202ename"
    assert (first["level"], first["logger"]) == ("info", "cortexd.test")
    assert (first["node"], first["count"]) == ("a\nb", 2)
    assert second["traceback"].endswith("ValueError: first\nsecond\x1b[2J")
    assert "\x1b" not in text


def test_on_a_terminal_it_is_words_with_nothing_that_moves_the_cursor() -> None:
    stream = Terminal()
    said(stream)
    first = stream.getvalue().splitlines()[0]
    assert first.isascii()
    assert first.isprintable()
    assert stream.getvalue().replace("\n", "").isprintable()
    assert first.endswith(r"INFO    model evil\r\n\x1b[31m\u202ename node=a\nb count=2")


def test_the_level_is_the_least_that_is_said() -> None:
    stream = io.StringIO()
    said(stream, level="error")
    assert len(stream.getvalue().splitlines()) == 1
    stream = io.StringIO()
    said(stream, level="debug")
    assert len(stream.getvalue().splitlines()) == 3


def test_a_stderr_that_fails_harms_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    said(Full())
    assert logging.getLogger().handlers


def test_a_form_parsers_complaints_are_not_ours() -> None:
    stream = io.StringIO()
    said(stream)
    before = stream.getvalue()
    logging.getLogger("python_multipart.multipart").warning("Did not find CR")
    assert stream.getvalue() == before


def test_the_form_may_be_told() -> None:
    stream = io.StringIO()
    said(stream, form="text")
    assert "INFO    model evil" in stream.getvalue()
    terminal = Terminal()
    said(terminal, form="json")
    assert json.loads(terminal.getvalue().splitlines()[0])["level"] == "info"


def test_configured_again_every_event_is_said_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    said(first)
    said(second)
    assert len(first.getvalue().splitlines()) == len(second.getvalue().splitlines()) == 2


@pytest.mark.parametrize("form", ["auto", "text"])
def test_in_the_journal_every_line_has_a_priority_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    with journal(tmp_path, monkeypatch) as stream:
        said(stream, level="debug", form=form)
        logging.getLogger("cortexd.test").warning("watch out")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<7>quiet"
    assert lines[1] == r"<6>model evil\r\n\x1b[31m\u202ename node=a\nb count=2"
    assert lines[2:4] == ["<3>failed", "<3>Traceback (most recent call last):"]
    assert lines[-1] == "<4>watch out"
    assert all(re.match(r"<[3467]>", line) for line in lines)
    assert stream.getvalue().isascii()


def test_json_that_is_asked_for_stays_json_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal(tmp_path, monkeypatch) as stream:
        said(stream, form="json")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == [
        "info",
        "error",
    ]


def test_a_stderr_that_was_redirected_is_not_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal(tmp_path, monkeypatch) as stream:
        with (tmp_path / "elsewhere").open("wb") as other:
            stream.descriptor = other.fileno()
            said(stream)
        assert json.loads(stream.getvalue().splitlines()[0])["level"] == "info"
