from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from cortexd.config.neuron import Paths
from cortexd.neuron import filelist, library
from cortexd.neuron.filelist import FileList
from cortexd.nodes.client import NeuronClient
from cortexd.wire.neuron import Loadable
from tests.neuron.engines import FakeHarness, local, running_neuron
from tests.waiting import GUARD, eventually


async def test_a_neuron_tells_what_it_could_load_and_when_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelist, "RESCAN", 0.01)
    (tmp_path / "b-Q4_0.gguf").touch()
    paths = Paths(models=(str(tmp_path),))
    async with running_neuron(local("a"), harness=FakeHarness(), paths=paths) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        told = await client.discovery(GUARD)
        assert told.loadable == [Loadable("a"), Loadable("b", ["Q4_0"]), Loadable("b-Q4_0", [""])]
        assert told.loadable_version
        assert (await client.health(GUARD)).loadable_version == told.loadable_version
        (tmp_path / "c.gguf").touch()

        async def has_changed() -> bool:
            return (await client.health(GUARD)).loadable_version != told.loadable_version

        await eventually(has_changed)
        again = await client.discovery(GUARD)
        assert again.loadable is not None
        assert Loadable("c", [""]) in again.loadable


async def test_a_list_that_is_too_long_is_none_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filelist, "MAX_LISTED", 2)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.gguf").touch()
    files = FileList([tmp_path], [])
    await files.start()
    await files.refresh()
    assert (files.entries, files.version) == (None, None)
    assert len(caplog.messages) == 1
    (tmp_path / "c.gguf").unlink()
    await files.refresh()
    assert [each.id for each in files.entries or ()] == ["a", "b"]
    await files.close()


async def test_an_answer_does_not_wait_for_a_mount_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelist, "WITHIN", 0.01)
    goes_on = Event()
    monkeypatch.setattr(library, "loadable", lambda _: goes_on.wait(GUARD) and {})
    files = FileList([tmp_path], ["a"])
    await files.start()
    assert files.entries is None
    goes_on.set()

    async def is_known() -> bool:
        return files.entries == [Loadable("a")]

    await eventually(is_known)
    await files.close()
