"""Which file a name means, and that no name leads out of the directories."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd.errors import Refusal
from cortexd.neuron import library


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("there", "wanted", "quant", "found"),
    [
        ("m.gguf", "m", None, "m.gguf"),
        ("m-Q4_K_M.gguf", "m", None, "m-Q4_K_M.gguf"),
        ("m-Q4_K_M.gguf", "m", "q4_k_m", "m-Q4_K_M.gguf"),
        ("m.Q4_1.gguf", "m", "Q4_1", "m.Q4_1.gguf"),
        ("m.gguf m-Q8_0.gguf", "m", None, "m.gguf"),
        ("m.gguf m-Q8_0.gguf", "m", "Q8_0", "m-Q8_0.gguf"),
        ("m-IQ2_XS.gguf m-BF16.gguf", "m", "bf16", "m-BF16.gguf"),
        ("m-UD-Q4_K_XL.gguf", "m", "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("org/m.gguf", "org/m", None, "org/m.gguf"),
        ("org/m.gguf", "hf:org/m", None, "org/m.gguf"),
        ("m:8b.gguf", "m:8b", None, "m:8b.gguf"),
        ("m/weights.gguf", "m", None, "m/weights.gguf"),
        ("m/mmproj-F16.gguf m/w-Q4_0.gguf", "m", None, "m/w-Q4_0.gguf"),
        ("org/m/w-Q4_0.gguf org/m/w-Q8_0.gguf", "org/m", "Q8_0", "org/m/w-Q8_0.gguf"),
        (
            "m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf",
            "m",
            None,
            "m-Q8_0-00001-of-00002.gguf",
        ),
    ],
)
def test_a_name_finds_its_file(
    tmp_path: Path, there: str, wanted: str, quant: str | None, found: str
) -> None:
    tree(tmp_path / "models", *there.split())
    model_id, path = library.find([tmp_path / "none", tmp_path / "models"], wanted, quant)
    assert path == tmp_path / "models" / found
    assert model_id == wanted.removeprefix("hf:")


@pytest.mark.parametrize("there", ["m-8B.gguf", "m-Instruct-Q4_0.gguf", "m2.gguf", "M.gguf", "m"])
def test_the_name_of_another_model_is_not_taken_for_it(tmp_path: Path, there: str) -> None:
    tree(tmp_path, there)
    with pytest.raises(Refusal, match=r"looked for m.gguf, m-<quant>.gguf, m/\*.gguf") as refused:
        library.find([tmp_path], "m")
    assert refused.value.kind.code == "model_not_found"


def test_a_quant_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    tree(tmp_path, "m-Q4_0.gguf", "m-Q8_0.gguf")
    with pytest.raises(Refusal, match=r"no.* 'Q5_0'; there is m-Q4_0.gguf, m-Q8_0.gguf"):
        library.find([tmp_path], "m", "Q5_0")
    with pytest.raises(Refusal, match="its quant must be named") as refused:
        library.find([tmp_path], "m")
    assert (refused.value.kind.status, refused.value.kind.code) == (422, "no_such_quant")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "hf:../secret",
        "..",
        "a/../../secret",
        "models/../../secret",
        "./../secret",
        "a//../../secret",
        "secret/",
        "",
        "\0",
        "{outside}/secret",
        "hf:{outside}/secret",
        "x" * 5000,
        "\ud800",
    ],
)
def test_no_name_leads_out_of_the_directories(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "secret.gguf", "secret/w.gguf", "models/a/w.gguf")
    with pytest.raises(Refusal) as refused:
        library.find([tmp_path / "models"], name.replace("{outside}", str(tmp_path)))
    assert refused.value.kind.code == "model_not_found"


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("library")
    tree(root, "secret.gguf", "models/a/w.gguf", "models/b-Q4_0.gguf")
    return root


@given(st.lists(st.sampled_from(["..", ".", "/", "a", "b", "secret", ":", "models"]), max_size=9))
def test_whatever_is_found_lies_below_the_directories(secret: Path, pieces: list[str]) -> None:
    try:
        _, path = library.find([secret / "models"], "".join(pieces))
    except Refusal:
        return
    assert path.resolve().is_relative_to(secret / "models")


def test_a_symlink_in_the_directory_is_the_operators_word(tmp_path: Path) -> None:
    tree(tmp_path, "elsewhere/big.gguf", "models/x")
    (tmp_path / "models/m.gguf").symlink_to(tmp_path / "elsewhere/big.gguf")
    assert library.find([tmp_path / "models"], "m")[1] == tmp_path / "models/m.gguf"


NAMES = st.sampled_from(
    [
        "m.gguf",
        "m-Q4_0.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m.bf16.gguf",
        "m-8B.gguf",
        "org/m-Q8_0-00001-of-00002.gguf",
        "org/m-Q8_0-00002-of-00002.gguf",
        "org/m/w-Q4_0.gguf",
        "org/m/mmproj-F16.gguf",
        "org/m/w.gguf",
        "m/w-Q4_0.gguf",
        "-Q4_0.gguf",
        "readme.md",
    ]
)


@given(st.sets(NAMES, min_size=1))
def test_every_loadable_id_is_found_and_every_found_id_is_loadable(there: set[str]) -> None:
    with TemporaryDirectory() as root:
        tree(Path(root), *there)
        listed = library.loadable([Path(root) / "none", Path(root)])
        assert listed is not None
        for name, quants in listed.items():
            for quant in quants - {""}:
                assert library.find([Path(root)], name, quant)[0] == name
            if "" in quants or len(quants) == 1:
                assert library.find([Path(root)], name)[0] == name
        for name in {"m", "m-8B", "m-UD", "org/m", "org", "m-Q4_0", "x"} - listed.keys():
            with pytest.raises(Refusal):
                library.find([Path(root)], name)


def test_symlink_to_a_parent_directory_is_scanned_once(tmp_path: Path) -> None:
    tree(tmp_path, "org/m.gguf")
    (tmp_path / "org/up").symlink_to(tmp_path)
    listed = library.loadable([tmp_path])
    assert listed is not None
    assert set(listed) == {"org/m", "org"}


def test_more_files_than_the_scan_limit_give_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, *(f"{number}.gguf" for number in range(20)))
    monkeypatch.setattr(library, "MAX_ENTRIES", 10)
    assert library.loadable([tmp_path]) is None
