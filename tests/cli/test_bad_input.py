"""Whatever is wrong with a configuration: the exit status that is documented, and words to act on.

The whole list runs in this process; the way to it, through a process of its own, is the same for
all and is walked for some of each kind.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cortexd.cli.main import main
from tests.waiting import GUARD

ROOT = Path(__file__).parents[2]
NODE = "[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"


class Bad(NamedTuple):
    """What stands in cortex.toml, the words that must be said, and what else lies beside it."""

    text: str | bytes
    said: str
    beside: Callable[[Path], object] | None = None


def models(text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda place: (place / "models.toml").write_bytes(content)


def secret(content: bytes, mode: int = 0o600) -> Callable[[Path], object]:
    def make(place: Path) -> None:
        (place / "t").write_bytes(content)
        (place / "t").chmod(mode)

    return make


WITH_TOKEN = NODE + "token_file = 't'\n"
WITH_MODELS = "[catalogue]\npath = 'models.toml'\n[[models]]\nid = 'm'\n"

BAD = {
    "an unknown key": Bad(
        "[gateway]\nlistne = ':1'", ":2: gateway.listne: unknown key; did you mean"
    ),
    "an unknown table": Bad("[gatway]", ':1: gatway: unknown key; did you mean "gateway"?'),
    "a key of another table": Bad("[gateway]\ntimeout = '1s'", ":2: gateway.timeout: unknown key"),
    "a key outside of its table": Bad("listen = ':1'", ":1: listen: unknown key"),
    "a wrong type": Bad(
        "[gateway]\nlisten = 8080", ":2: gateway.listen: found 8080 (allowed: a str"
    ),
    "a string for a boolean": Bad("[gateway]\naccess_log = 'no'", "(allowed: true or false)"),
    "a number without a unit": Bad(
        "[polling]\ninterval = 2", "(allowed: a duration with a unit, like"
    ),
    "a bad unit": Bad(
        "[polling]\ninterval = '2 fortnights'", 'found "2 fortnights" (allowed: a dur'
    ),
    "a decimal size": Bad(
        "[gateway]\nmax_body = '64MB'", 'found "64MB" (allowed: a size with a unit'
    ),
    "a negative duration": Bad("[polling]\ninterval = '-2s'", ":2: polling.interval: found"),
    "no time at all": Bad("[polling]\ninterval = '0s'", '"30m", more than 0'),
    "no time to connect": Bad(
        "[upstream]\nconnect_timeout = '0s'", ":2: upstream.connect_timeout: "
    ),
    "an endless time": Bad("[polling]\ninterval = '99999999h'", "(allowed: at most 240000h)"),
    "a time beyond numbers": Bad(f"[polling]\ninterval = '{'9' * 400}h'", "(allowed: at most"),
    "a size beyond numbers": Bad(f"[gateway]\nmax_body = '{'9' * 400}GiB'", "(allowed: at most"),
    "no body at all": Bad("[gateway]\nmax_body = '0B'", ":2: gateway.max_body: found"),
    "less buffer than a body": Bad("[gateway]\nmax_buffered = '1MiB'", "at least max_body (64MiB)"),
    "a negative number": Bad(
        "[upstream]\nretries = -1", "found -1 (allowed: a whole number, 0 or more)"
    ),
    "a negative size": Bad("[[models]]\nid = 'm'\nvram_mb = -1", ":3: models[0].vram_mb: found -1"),
    "a negative limit": Bad(
        "[[models]]\nid='m'\nlimit={output=-1}", ":3: models[0].limit.output: "
    ),
    "a weight of nothing": Bad(NODE + "weight = 0", "found 0 (allowed: a number, more than 0)"),
    "not a number": Bad(
        NODE + "weight = nan", ":4: neurons[0].weight: found nan (allowed: a finite"
    ),
    "infinity": Bad(NODE + "weight = inf", "found inf (allowed: a finite number)"),
    "a float beyond floats": Bad(NODE + "weight = 1e999", "found inf (allowed: a finite number)"),
    "a huge integer": Bad(
        f"[[models]]\nid = 'm'\nvram_mb = {'9' * 30}", "found a number beyond 64 bits"
    ),
    "more digits than Python takes": Bad(f"x = {'9' * 5000}", "a number has far too many digits"),
    "the same in hexadecimal": Bad(
        f"[upstream]\nretries = 0x{'f' * 9999}", "a number beyond 64 bits"
    ),
    "a list for a table": Bad("gateway = [1]", ":1: gateway: found an array (allowed: a table)"),
    "a table for a list": Bad(
        "[neurons]\nname = 'a'", ":1: neurons: found a table (allowed: an array"
    ),
    "a date": Bad("[gateway]\nlisten = 2026-01-01", "found a date or time (allowed: a string)"),
    "a node without a name": Bad(
        "[[neurons]]\nendpoint = 'http://a:1'", ":1: neurons[0].name: missing"
    ),
    "a node without an endpoint": Bad("[[neurons]]\nname = 'a'", "neurons[0].endpoint: missing"),
    "two nodes of one name": Bad(NODE + NODE, ':5: neurons[1].name: "a" is used twice, first in'),
    "an empty name": Bad(NODE.replace("'a'", "''"), ":2: neurons[0].name: found"),
    "a name with an escape": Bad(NODE.replace("'a'", '"\\u001b[2J"'), 'found "\\u001b[2J"'),
    "an endpoint that is no URL": Bad(NODE.replace("http://", ""), '(allowed: a URL like "http://'),
    "an endpoint with a path": Bad(NODE.replace(":1'", ":1/v1'"), ":3: neurons[0].endpoint: found"),
    "a secret in an endpoint": Bad(NODE.replace("//a", "//u:p@a"), "a token belongs in token_file"),
    "two models of one id": Bad("[[models]]\nid='m'\n[[models]]\nid='m'", ":4: models[1].id: "),
    "a pin to no node": Bad(
        NODE + "[[models]]\nid='m'\npinned_on=['b']", 'no neuron is called "b"'
    ),
    "no device at all": Bad(
        "[[models]]\nid = 'm'\nmin_devices = 0", "found 0 (allowed: a whole number, 1"
    ),
    "an alias of an alias": Bad(
        "[aliases]\nx = 'y'\ny = 'm'", ':2: aliases.x: "y" is an alias itself'
    ),
    "an alias of itself": Bad("[aliases]\nx = 'x'", ':2: aliases.x: "x" is an alias itself'),
    "an alias over a model": Bad(
        "[[models]]\nid='m'\n[aliases]\nm='n'", ":4: aliases.m: a model of"
    ),
    "an affinity that is none": Bad(
        "[routing]\naffinity = 'sticky'", '(allowed: "prefix" or "none")'
    ),
    "a level that is none": Bad(
        "[logging]\nlevel = 'loud'", ':2: logging.level: found "loud" (allowed'
    ),
    "a port that is none": Bad("[gateway]\nlisten = ':99999'", "(allowed: host:port, like"),
    "a host that is none": Bad(
        "[gateway]\nlisten = 'a..b:1'", 'found "a..b:1" (allowed: host:port'
    ),
    "a host with a NUL": Bad('[gateway]\nlisten = "a\\u0000:1"', "(allowed: host:port, like"),
    "a node's host that is none": Bad(NODE.replace("//a", "//a..b"), "whose host can't be one"),
    "no port": Bad("[gateway]\nlisten = 'localhost'", ":2: gateway.listen: found"),
    "a bad admin_listen": Bad(
        "[gateway]\nadmin_listen = 'unix:x'", 'or "unix:/path"; or "" for nowhere'
    ),
    "one port for two": Bad("[gateway]\nadmin_listen = '0.0.0.0:8080'", "which is listen"),
    "an origin with a path": Bad("[gateway]\ncors_origins = ['https://a/b']", "an origin in"),
    "a host that is a URL": Bad("[security]\nallowed_inference_hosts=['http://a']", "a host, like"),
    "bad TOML": Bad("[gateway]\n\nlisten = \n", ":3: not valid TOML: Invalid value"),
    "a string without an end": Bad("\n[gateway]\nlisten = 'x", "not valid TOML: "),
    "a key twice": Bad(
        "[gateway]\nlisten=':1'\nlisten=':2'", ":3: not valid TOML: Cannot overwrite"
    ),
    "NUL bytes": Bad(b"[gateway]\nlisten = '\0'", ":2: not valid TOML: Found invalid character"),
    "not UTF-8": Bad(b"# one\n# \xff\n", ":2: not UTF-8 at byte 8; save the file as UTF-8"),
    "UTF-16": Bad("[gateway]".encode("utf-16"), ":1: not UTF-8 at byte 0"),
    "no text at all": Bad(bytes(range(128, 256)), ":1: not UTF-8 at byte 0"),
    "arrays without a bottom": Bad("x = " + "[" * 9999, "arrays or tables nest too deeply"),
    "no such token": Bad(
        WITH_TOKEN, ":4: neurons[0].token_file: DIR/t can't be read: No such file"
    ),
    "a token for everyone": Bad(
        WITH_TOKEN, "(mode 0644); run: chmod o= DIR/t", secret(b"x", 0o644)
    ),
    "an empty token": Bad(WITH_TOKEN, "DIR/t is empty; write a token into it", secret(b"\n")),
    "two tokens in one file": Bad(WITH_TOKEN, "DIR/t holds several lines", secret(b"a\nb\n")),
    "a token that is binary": Bad(WITH_TOKEN, "more than ASCII", secret(b"\0\xff")),
    "a token that is a directory": Bad(
        NODE + "token_file = '.'", "DIR is a directory; name a file"
    ),
    "a token's name with a NUL": Bad(NODE + 'token_file = "a\\u0000"', "its name holds a NUL byte"),
    "no such certificates": Bad("[upstream]\nca_file = 'ca'", "DIR/ca: No such file"),
    "certificates that are none": Bad(
        "[upstream]\nca_file = 'cortex.toml'", "holds no certificates"
    ),
    "no such certificates of a node": Bad(NODE + "ca_file = 'ca'", "DIR/ca: No such file"),
    "certificates of a node that are none": Bad(
        NODE + "ca_file = 'cortex.toml'",
        "neurons[0].ca_file: DIR/cortex.toml: holds no certificates",
    ),
    "no such models.toml": Bad(
        WITH_MODELS, ":2: catalogue.path: DIR/models.toml: can't be read: No "
    ),
    "a models.toml of a directory": Bad(WITH_MODELS.replace("models.toml", "."), "Is a directory"),
    "bad TOML over there": Bad(
        WITH_MODELS, "DIR/models.toml:2: not valid TOML: ", models("\n[[x]")
    ),
    "a mistake over there": Bad(
        WITH_MODELS, "DIR/models.toml:2: models[0].id: found 3 (allowed", models("[[models]]\nid=3")
    ),
    "a node over there": Bad(WITH_MODELS, "DIR/models.toml:1: neurons: unknown key", models(NODE)),
    "one model in two files": Bad(
        WITH_MODELS,
        'DIR/models.toml:2: models[0].id: "m" is used twice, first in DIR/cortex.toml:4',
        models("[[models]]\nid = 'm'"),
    ),
}


def told(place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--config", str(place / "cortex.toml")])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err.replace(str(place), "DIR")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_every_mistake_is_status_78_and_one_line_that_names_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: Bad
) -> None:
    file = tmp_path / "cortex.toml"
    file.write_bytes(bad.text.encode() if isinstance(bad.text, str) else bad.text)
    if bad.beside is not None:
        bad.beside(tmp_path)
    status, out, err = told(tmp_path, capsys)
    assert (status, out) == (78, "")
    assert bad.said in err
    assert err.startswith("DIR/")
    assert re.fullmatch(r"(\S+: )+.+\n", err)
    assert err[:-1].isprintable()
    assert len(err) < 700


def test_a_file_that_is_empty_is_all_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.toml").touch()
    status, out, err = told(tmp_path, capsys)
    verdict = "usable, but see the warning; 0 neurons, 0 models, 0 aliases"
    assert (status, out) == (0, f"{tmp_path}/cortex.toml: {verdict}\n")
    assert err.startswith("warning: DIR/cortex.toml: gateway.listen: anyone who can reach 0.0.0.0")
    assert len(err.splitlines()) == 1


def test_alias_of_a_model_that_is_not_in_the_catalogue_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.toml").write_text(
        '[gateway]\nlisten = "127.0.0.1:1"\n[[models]]\nid = "qwen"\n[aliases]\nsmall = "qwem"\n'
    )
    status, out, err = told(tmp_path, capsys)
    assert (status, "usable, but see the warning; 0 neurons, 1 model, 1 alias" in out) == (0, True)
    assert err == (
        'warning: DIR/cortex.toml:6: aliases.small: no [[models]] entry is called "qwem"; did you '
        'mean "qwen"?; requests for the alias are refused unless a node has the model by itself\n'
    )


def test_a_byte_order_mark_and_windows_lines_are_no_mistake_and_lines_are_still_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.toml").write_bytes(b"\xef\xbb\xbf[gateway]\r\nlisten = 1\r\n")
    status, _, err = told(tmp_path, capsys)
    assert (status, err) == (78, "DIR/cortex.toml:2: gateway.listen: found 1 (allowed: a string)\n")


def test_a_directory_and_a_link_to_nowhere_are_status_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cortex.toml").mkdir()
    assert told(tmp_path, capsys)[2] == "DIR/cortex.toml: can't be read: Is a directory\n"
    (tmp_path / "cortex.toml").rmdir()
    (tmp_path / "cortex.toml").symlink_to("nowhere")
    assert (
        told(tmp_path, capsys)[2] == "DIR/cortex.toml: can't be read: No such file or directory\n"
    )


def cortexd(place: Path, command: str, text: str, **environ: str) -> tuple[int, str]:
    (place / "x.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "cortexd", command, "--config", "x.toml"],
        capture_output=True,
        text=True,
        timeout=GUARD,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


GATEWAY = "[gateway]\nstate_dir = 'state'\nadmin_listen = ''\n"


@pytest.mark.parametrize(
    ("command", "text", "status", "said"),
    [
        ("serve", WITH_TOKEN, 78, "x.toml:4: neurons[0].token_file: t can't be read"),
        ("serve", "[gateway]\nlisten = 1", 78, "x.toml:2: gateway.listen: found 1"),
        ("neuron", "[neuron]\nlisten = 1", 78, "x.toml:2: neuron.listen: found 1"),
        ("neuron", "[neuron]\ntoken_file = 't'", 78, "x.toml:2: neuron.token_file: t can't"),
        (
            "serve",
            GATEWAY + "listen = '192.0.2.1:0'",
            1,
            "can't listen on 192.0.2.1:0 ([gateway] listen)",
        ),
        (
            "serve",
            "[gateway]\nlisten = '127.0.0.1:0'\nadmin_listen = 'unix:/none/x'",
            1,
            "can't listen on unix:/none/x ([gateway] admin_listen): ",
        ),
    ],
)
def test_a_daemon_says_why_it_does_not_start(
    tmp_path: Path, command: str, text: str, status: int, said: str
) -> None:
    returned, err = cortexd(tmp_path, command, text)
    assert said in err
    assert (returned, len(err.splitlines())) == (status, 1)


def test_a_taken_port_is_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        returned, err = cortexd(tmp_path, "serve", GATEWAY + f"listen = '{where}'")
    assert returned == 1
    assert f"can't listen on {where} ([gateway] listen): " in err
    assert "in use" in err


def test_a_wrong_variable_is_status_78_and_named(tmp_path: Path) -> None:
    returned, err = cortexd(tmp_path, "serve", "", CORTEX_POLLING__INTERVAL="2")
    assert returned == 78
    assert err.startswith('CORTEX_POLLING__INTERVAL: polling.interval: found "2" (allowed: a dur')


def test_a_variable_is_no_place_for_the_tokens_of_two(tmp_path: Path) -> None:
    text = NODE.replace("'a'", "'a-b'") + NODE.replace("'a'", "'a b'")
    returned, err = cortexd(tmp_path, "serve", text, CORTEX_TOKEN__A_B="s3cret")
    assert returned == 78
    assert "CORTEX_TOKEN__A_B would be the token of" in err
    assert "s3cret" not in err
