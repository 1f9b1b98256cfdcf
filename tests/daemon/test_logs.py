from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from cortexd.config.logs import Format, Level, Logging
from cortexd.daemon import logs


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
