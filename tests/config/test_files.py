"""Paths of the configuration: the home directory, and the base of relative ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.config.address import unix_path
from cortexd.config.files import expanded, locate, located
from cortexd.config.secrets import read_secret
from cortexd.daemon.state import state_directory


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("name", "path"),
    [("~/x", "HOME/x"), ("~", "HOME"), ("x/~", "/base/x/~"), ("x", "/base/x"), ("/x", "/x")],
)
def test_tilde_is_the_home_directory_and_a_relative_path_starts_at_the_base(
    home: Path, name: str, path: str
) -> None:
    assert located(Path("/base"), name) == Path(path.replace("HOME", str(home)))


def test_home_of_an_unknown_user_is_taken_literally() -> None:
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


def test_every_key_that_takes_a_path_expands_the_tilde(home: Path) -> None:
    home.mkdir()
    (home / "t").touch(0o600)
    (home / "t").write_text("secret")
    assert read_secret("~/t", Path("/base")) == "secret"
    assert state_directory("~/state", Path("/base"), {}) == home / "state"
    assert unix_path("unix:~/admin.sock") == f"{home}/admin.sock"
    assert locate([Path("/models")], "~/m.gguf") == home / "m.gguf"


def test_a_configured_model_file_is_looked_up_below_the_directories(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two/m.gguf").touch()
    directories = [tmp_path / "one", tmp_path / "two"]
    assert locate(directories, "m.gguf") == tmp_path / "two/m.gguf"
    assert locate(directories, "no.gguf") == tmp_path / "one/no.gguf"
    assert locate(directories, "/else/m.gguf") == Path("/else/m.gguf")
    assert locate([], "m.gguf") == Path("m.gguf")
