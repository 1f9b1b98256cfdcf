"""What outlives a restart, on real files. Root ignores modes: a disk that refuses is a path below a
file, or a name that a directory has."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.config.catalogue import Profile
from cortexd.config.units import Duration
from cortexd.daemon import state as state_module
from cortexd.daemon.state import (
    FILE,
    MAX_SIZE,
    Footprint,
    State,
    StateFile,
    fingerprint,
    noted,
    remembered,
    state_directory,
)
from cortexd.fleet.snapshot import FootprintKey
from cortexd.wire.neuron import Limit
from tests.waiting import until

KEY = FootprintKey("m", "llamacpp", None, 1, "a")
SOME = State(("a", "b"), (Footprint(KEY, 4096.5, "cafe"),))


async def read(directory: Path) -> State:
    """What the next process would start with."""
    file = StateFile(directory)
    try:
        return await file.open()
    finally:
        await file.close()


async def keep(directory: Path, *states: State) -> None:
    file = StateFile(directory)
    await file.open()
    for state in states:
        file.put(state)
    await file.close()


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]


async def test_what_nodes_report_can_not_make_the_file_too_long_to_be_read(tmp_path: Path) -> None:
    crowd = tuple(
        Footprint(msgspec.structs.replace(KEY, model="m" * 500, devices=number), 1.0, "cafe")
        for number in range(MAX_SIZE // 500)
    )
    await keep(tmp_path, State(("a",), crowd))
    assert await read(tmp_path) == State(("a",))


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "not/there/yet"
    assert await read(directory) == State()
    assert not directory.exists()
    await keep(directory, SOME)
    assert await read(directory) == SOME


async def test_it_is_written_without_waiting_for_the_end(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    await file.open()
    file.put(SOME)
    await until((tmp_path / FILE).exists)
    assert await read(tmp_path) == SOME  # as after a kill -9
    await file.close()


async def test_the_last_of_many_is_kept_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    await keep(tmp_path, *(State((str(number),)) for number in range(100)), SOME)
    assert await read(tmp_path) == SOME
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert names(tmp_path) == [FILE]


async def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    await keep(tmp_path, SOME)
    before = (tmp_path / FILE).stat()
    await keep(tmp_path, SOME)
    assert (tmp_path / FILE).stat() == before


async def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    """The file that is open stays whole: the new one takes its name, not its place."""
    await keep(tmp_path, SOME)
    with (tmp_path / FILE).open("rb") as held:
        await keep(tmp_path, State(("c",)))
        assert msgspec.json.decode(held.read(), type=State) == SOME
    assert await read(tmp_path) == State(("c",))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"drained":"a"}',
        b'{"drained":[1]}',
        b'{"footprints":[{"mb":1}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"x" * (MAX_SIZE + 1),
    ],
    ids=lambda content: content[:24].decode(errors="replace"),
)
async def test_a_file_that_is_no_good_is_said_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert await read(tmp_path) == State()
    (said,) = warnings(caplog)
    assert said.startswith(f"{tmp_path / FILE} can't be used: ")
    assert "starting without it" in said
    assert (tmp_path / FILE).read_bytes() == content  # nothing changed yet
    await keep(tmp_path, SOME)
    assert await read(tmp_path) == SOME


@given(content=st.binary() | st.text().map(str.encode))
async def test_no_content_crashes_it(tmp_path_factory: pytest.TempPathFactory, content) -> None:
    directory = tmp_path_factory.mktemp("state")
    (directory / FILE).write_bytes(content)
    assert isinstance(await read(directory), State)


async def test_what_a_later_version_wrote_beside_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"drained":["a"],"moods":{}}')
    assert await read(tmp_path) == State(("a",))


async def test_something_else_of_that_name_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / FILE)  # reading it would take for ever
    assert await read(tmp_path) == State()
    (said,) = warnings(caplog)
    assert "not a file of the gateway's" in said


async def test_a_directory_that_cannot_be_is_said_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(state_module, "RETRY", 0.01)
    monkeypatch.setattr(state_module, "PAUSE", 0.01)
    blocked = tmp_path / "a file"
    blocked.write_text("in the way")
    file = StateFile(blocked / "state")
    assert await file.open() == State()
    file.put(SOME)
    await until(lambda: len(warnings(caplog)) == 2)
    unreadable, unwritable = warnings(caplog)
    assert "can't be used: Not a directory; starting without it" in unreadable
    assert "can't be written: " in unwritable
    assert "set [gateway] state_dir" in unwritable
    for number in range(3):
        file.put(State((str(number),)))
        await until(lambda: not file._changed.is_set())
    assert len(warnings(caplog)) == 2
    blocked.unlink()
    file.put(SOME)
    await until((blocked / "state" / FILE).exists)
    await file.close()
    assert await read(blocked / "state") == SOME
    assert caplog.records[-1].getMessage() == f"{blocked}/state/{FILE} can be written again"


async def test_a_write_that_fails_leaves_the_file_and_no_litter(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()  # a name that can't be replaced by a file's
    (tmp_path / FILE / "precious").write_text("data")
    await keep(tmp_path, SOME)
    assert names(tmp_path) == [FILE]
    assert (tmp_path / FILE / "precious").read_text() == "data"


async def test_without_a_directory_it_lives_as_long_as_the_process() -> None:
    file = StateFile(None)
    assert await file.open() == State()
    file.put(SOME)
    assert file.state == SOME
    await file.close()


# Where.


@pytest.mark.parametrize(
    ("configured", "environ", "directory"),
    [
        ("/var/x", {"STATE_DIRECTORY": "/s"}, "/var/x"),
        ("here", {}, "/etc/cortexd/here"),
        (None, {"STATE_DIRECTORY": "/s:/t", "XDG_STATE_HOME": "/x"}, "/s"),
        (None, {"XDG_STATE_HOME": "/x"}, "/x/cortexd"),
        (None, {"XDG_STATE_HOME": "x", "STATE_DIRECTORY": ""}, "/home/me/.local/state/cortexd"),
        (None, {}, "/home/me/.local/state/cortexd"),
    ],
)
def test_where_it_is(
    configured: str | None,
    environ: dict[str, str],
    directory: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert state_directory(configured, Path("/etc/cortexd"), environ) == Path(directory)


# Footprints.


def test_a_footprint_is_remembered_while_its_profile_is_what_it_was() -> None:
    profiles = {"m": Profile("m", vram_mb=4000), "other": Profile("other")}
    measured = {KEY: 4100.0, FootprintKey("stranger", "llamacpp", None, 1, "a"): 7.0}
    kept = State(footprints=noted(measured, profiles))
    assert [it.key for it in kept.footprints] == [KEY]
    assert remembered(kept, profiles) == {KEY: 4100.0}
    assert remembered(kept, {"m": Profile("m", vram_mb=5000)}) == {}
    assert remembered(kept, {}) == {}


def test_no_measurement_is_remembered_that_is_none() -> None:
    profile = Profile("m")
    kept = State(footprints=(Footprint(KEY, 0, fingerprint(profile)),))
    assert remembered(kept, {"m": profile}) == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"harness": "vllm"},
        {"quant": "Q8_0"},
        {"source": "hf"},
        {"vram_mb": 1},
        {"min_devices": 2},
        {"min_device_vram_mb": 1},
        {"limit": Limit(context=8192)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_fingerprint_changes_with_what_memory_depends_on(changed) -> None:
    assert fingerprint(Profile("m", **changed)) != fingerprint(Profile("m"))


def test_the_fingerprint_stays_when_only_the_policy_changes() -> None:
    changed = Profile("m", pinned_on=("a",), preload=True, idle_ttl=Duration(5), replicas=2)
    assert fingerprint(changed) == fingerprint(Profile("m"))


async def test_directory_that_can_not_be_written_is_known_before_anything_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    file = StateFile(tmp_path / "file/below")
    await file.open()
    assert file.problem is not None
    assert "can't be written: Not a directory; a restart forgets" in file.problem
    assert "can't be written" in warnings(caplog)[-1]
    (tmp_path / "file").unlink()
    assert await file.check() is None
    assert file.problem is None
    await file.close()


async def test_check_says_that_nothing_is_kept_without_a_directory() -> None:
    file = StateFile(None)
    assert file.problem is None
    assert await file.check() == "no state directory is known: set [gateway] state_dir"
