from __future__ import annotations

import asyncio
import io
import json

import pytest

from cortexd.daemon import access
from cortexd.daemon.access import AccessLine, AccessLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line(model: str = "m", **fields: object) -> AccessLine:
    known = {"ts": 1.5, "level": "info", "request_id": "r", "path": "/v1", "status": 200}
    return AccessLine(**known | {"duration_s": 0.25, "model": model} | fields)  # type: ignore[arg-type]


async def test_lines_are_json_without_what_is_not_known() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    log.write(line(node="a"))
    log.write(line())
    log.flush()
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
async def test_a_line_is_one_line_of_ascii_whatever_a_name_holds(stream: io.StringIO) -> None:
    log = AccessLog(stream)
    log.write(line("evil\r\n\x1b[31m\u202ename"))
    log.flush()
    text = stream.getvalue()
    assert text.isascii()
    assert text[:-1].isprintable()
    assert text.endswith("\n")


async def test_on_a_terminal_it_is_words() -> None:
    stream = Terminal()
    log = AccessLog(stream)
    log.write(line(node="a", first_byte_s=0.1))
    log.flush()
    words = stream.getvalue().split(" ", 1)[1]
    assert words == "INFO    200 /v1 m request_id=r duration_s=0.25 node=a first_byte_s=0.1\n"


async def test_what_is_written_appears_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "DELAY", 0.0)
    written = asyncio.Event()

    class Stream(io.StringIO):
        def flush(self) -> None:
            written.set()

    stream = Stream()
    AccessLog(stream).write(line())
    async with asyncio.timeout(10):
        await written.wait()
    assert stream.getvalue().count("\n") == 1


async def test_a_closed_stream_harms_nothing() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    stream.close()
    log.write(line())
    log.flush()
    log.write(line())
