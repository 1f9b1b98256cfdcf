from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from cortexd.config.neuron import LocalModel, Paths
from cortexd.neuron import filelist, library
from cortexd.neuron.filelist import FileList
from cortexd.nodes.client import NeuronClient, NodeError
from cortexd.wire.neuron import Loadable, LoadRequest
from tests.neuron.engines import FakeHarness, local, running_neuron
from tests.waiting import GUARD, eventually


async def test_neuron_lists_loadable_models_and_changes_the_version_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelist, "RESCAN", 0.01)
    (tmp_path / "b-Q4_0.gguf").touch()
    paths = Paths(models=(str(tmp_path),))
    models = local("a", str(tmp_path / "b-Q4_0.gguf")), local("gone", str(tmp_path / "gone"))
    async with running_neuron(*models, harness=FakeHarness(), paths=paths) as (neuron, session):
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


async def test_file_list_that_is_too_long_is_dropped_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(filelist, "MAX_LOADABLE", 2)
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


@pytest.mark.parametrize("name", ["x" * 300, "loop"])
async def test_a_configured_name_that_no_file_can_have_hides_no_other(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "b.gguf").touch()
    files = FileList([tmp_path], [local("a", name)])
    await files.start()
    assert files.entries == [Loadable("b", [""])]
    assert not caplog.messages
    await files.close()


async def test_an_answer_does_not_wait_for_a_mount_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelist, "WITHIN", 0.01)
    goes_on = Event()
    monkeypatch.setattr(library, "loadable", lambda _: goes_on.wait(GUARD) and {})
    (tmp_path / "x").touch()
    files = FileList([tmp_path], [local("a", "x")])
    await files.start()
    assert files.entries is None
    goes_on.set()

    async def is_known() -> bool:
        return files.entries == [Loadable("a")]

    await eventually(is_known)
    await files.close()


async def test_a_configured_model_without_its_file_is_not_found_by_a_load(tmp_path: Path) -> None:
    gone = LocalModel("gone", path=str(tmp_path / "gone.gguf"), vram_mb=10)
    async with running_neuron(gone) as (neuron, session):
        client = NeuronClient(session, neuron.url)
        assert (await client.discovery(GUARD)).loadable == []
        with pytest.raises(NodeError, match=r"No file for 'gone': .*gone.gguf") as refused:
            await client.load(LoadRequest("gone"))
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
        (listed,) = await client.models(GUARD)
        assert (listed.status, listed.error) == ("failed", f"{refused.value.words}.")
        # Requests don't hear that the model is unknown: it is, but it can't be loaded.
        body = {"model": "gone", "messages": []}
        async with session.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 500
            assert "No file for 'gone'" in await answer.text()
