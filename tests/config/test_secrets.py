from __future__ import annotations

import os
from pathlib import Path

import pytest

from cortexd.config.gateway import Config, Neuron
from cortexd.config.secrets import SecretError, read_secret, read_tokens, variable


def secret(
    place: Path, name: str = "a.token", content: bytes = b"s3cret\n", mode: int = 0o600
) -> str:
    file = place / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
    return name


def test_tokens_are_read_beside_the_configuration(tmp_path: Path) -> None:
    nodes = (
        Neuron("a", "http://a", token_file=secret(tmp_path)),
        Neuron("b", "http://b"),
        Neuron("c", "http://c", token_file=str(tmp_path / secret(tmp_path, "c", b"other"))),
    )
    assert read_tokens(Config(neurons=nodes), tmp_path, {}) == {"a": "s3cret", "c": "other"}


def test_a_credential_of_that_name_comes_first(tmp_path: Path) -> None:
    secret(tmp_path, "token", b"beside")
    secret(tmp_path / "credentials", "token", b"credential", 0o444)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    assert read_secret("token", tmp_path, environ) == "credential"
    assert read_secret("./token", tmp_path, environ) == "beside"
    assert read_secret(str(tmp_path / "token"), tmp_path, environ) == "beside"
    secret(tmp_path, "only-here", b"beside")
    assert read_secret("only-here", tmp_path, environ) == "beside"


def test_a_variable_comes_before_the_file(tmp_path: Path) -> None:
    config = Config(neurons=(Neuron("gpu-1", "http://a", token_file="none"),))
    assert read_tokens(config, tmp_path, {"CORTEX_TOKEN__GPU_1": "s3cret"}) == {"gpu-1": "s3cret"}
    with pytest.raises(SecretError, match="CORTEX_TOKEN__GPU_1 is empty; write a token"):
        read_tokens(config, tmp_path, {"CORTEX_TOKEN__GPU_1": " "})
    assert variable("b\u00e4r 2") == "CORTEX_TOKEN__B_R_2"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o777])
def test_a_secret_that_everyone_may_touch_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    secret(tmp_path, mode=mode)
    with pytest.raises(SecretError) as refused:
        read_secret("a.token", tmp_path, {})
    file = tmp_path / "a.token"
    assert str(refused.value) == (
        f"{file} is open to every user of this machine (mode {mode:04o}); run: chmod o= {file}"
    )


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_its_group_may_read_it(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret(tmp_path, mode=mode), tmp_path, {}) == "s3cret"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"s3cret\nmore", "holds several lines"),
        (b"s3cret\r\nmore", "holds several lines"),
        (b"s3cret more", "holds a space"),
        (b"s3cr\xc3\xa9t", "more than ASCII"),
        (b"s3cr\xfft", "more than ASCII"),
        (b"s3cr\0t", "more than ASCII"),
        (b"s" * 5000, "too long"),
    ],
)
def test_what_is_no_token_is_refused_and_never_repeated(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(SecretError, match=words) as refused:
        read_secret(secret(tmp_path, content=content), tmp_path, {})
    assert "s3cr" not in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, words in {
        ".": "is a directory",
        "pipe": "is a device or a pipe",
        "none": "none can't be read: No such file",
        "a\0b": "can't be read: its name holds a NUL byte",
    }.items():
        with pytest.raises(SecretError, match=words):
            read_secret(name, tmp_path, {})
