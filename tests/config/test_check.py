from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.config.check import load_gateway, read_neuron
from cortexd.config.source import ConfigError

A = "[[neurons]]\nname = 'a'\nendpoint = 'http://a:1'\n"


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (A + A, "neurons[1].name", '"a" is used twice'),
        ("[[models]]\nid='m'\n[[models]]\nid='m'", "models[1].id", '"m" is used twice'),
        (
            A + "[[models]]\nid='m'\npinned_on=['b']",
            "models[0].pinned_on[0]",
            'no neuron is called "b" (allowed: a)',
        ),
        (
            "[[models]]\nid='m'\npinned_on=['b']",
            "models[0].pinned_on[0]",
            "no neuron is configured",
        ),
        ("[aliases]\nx='y'\ny='m'", "aliases.x", '"y" is an alias itself'),
        ("[aliases]\nx='x'", "aliases.x", '"x" is an alias itself'),
        (
            "[[models]]\nid='m'\n[aliases]\nm='n'",
            "aliases.m",
            "of the catalogue has this id",
        ),
        ("[aliases]\nx=''", "aliases.x", "can be empty"),
        ("[aliases]\n'a\tb'='m'", 'aliases."a\\tb"', "1 to 128 printable"),
        ("[[models]]\nid=''", "models[0].id", "1 to 128 printable"),
        ("[[models]]\nid='m'\nsource='hf:x'", "models[0].source", "a word without a colon"),
        ("[[models]]\nid='m'\nlimit={context=-1}", "models[0].limit.context", "0 or more"),
        ("[gateway]\nadmin_listen='0.0.0.0:8080'", "gateway.admin_listen", "which is listen"),
        ("[gateway]\nadmin_listen=':8080'", "gateway.admin_listen", "which is listen"),
        ("[gateway]\nadmin_listen='[::]:8080'", "gateway.admin_listen", "which is listen"),
        ("[gateway]\nmetrics_listen='127.0.0.1:8080'", "gateway.metrics_listen", "which is listen"),
        ("[gateway]\ncors_origins=['a.example']", "gateway.cors_origins[0]", "an origin in"),
        ("[gateway]\ncors_origins=['http://a/']", "gateway.cors_origins[0]", "without a path"),
        ("[gateway]\ncors_origins=['http://A']", "gateway.cors_origins[0]", "in lower case"),
        ("[gateway]\ncors_origins=['http://*']", "gateway.cors_origins[0]", "an origin in"),
        ("[gateway]\ncors_origins=['http://a:']", "gateway.cors_origins[0]", "an origin in"),
        ("[gateway]\ncors_origins=['app:x']", "gateway.cors_origins[0]", "an origin in"),
        ("[security]\nallowed_hosts=['a:80']", "security.allowed_hosts[0]", "a host in lower"),
        ("[security]\nallowed_hosts=['A']", "security.allowed_hosts[0]", "in lower case"),
        (
            "[security]\nallowed_inference_hosts=['http://x']",
            "security.allowed_inference_hosts[0]",
            "a host, like",
        ),
        (A + "token_file='x'", "neurons[0].token_file", "x can't be read: No such file"),
        ("[upstream]\nca_file='cortex.toml'", "upstream.ca_file", "holds no certificates"),
        ("[upstream]\nca_file='none'", "upstream.ca_file", "none: No such file"),
        ("[gateway]\nlisten='8080'", "gateway.listen", 'found "8080"'),
        ("[gateway]\nlisten='a:99999'", "gateway.listen", "allowed: host:port"),
        (
            "[gateway]\nmax_buffered='1MiB'",
            "gateway.max_buffered",
            "found 1MiB (allowed: at least max_body (64MiB)",
        ),
        (
            "[gateway]\nmax_body='1GiB'",
            "gateway.max_buffered",
            "found 512MiB (allowed: at least max_body (1GiB)",
        ),
        ("[gateway]\nmetrics_listen='::1'", "gateway.metrics_listen", "allowed: host:port"),
        ("[gateway]\nadmin_listen='8081'", "gateway.admin_listen", 'or "unix:/path"; or ""'),
        ("[gateway]\nadmin_listen='unix:x'", "gateway.admin_listen", 'found "unix:x"'),
        (
            f"[gateway]\nadmin_listen='unix:/{'x' * 107}'",
            "gateway.admin_listen",
            "allowed: host:port",
        ),
        (A.replace("http://a:1", "a:1"), "neurons[0].endpoint", 'found "a:1"'),
        (A.replace("http://a:1", "ftp://a:1"), "neurons[0].endpoint", "allowed: a URL like"),
        (A.replace("http://a:1", "http://a:1/x"), "neurons[0].endpoint", "allowed: a URL like"),
        (A.replace("http://a:1", "http://a:1?x"), "neurons[0].endpoint", "allowed: a URL like"),
        (A.replace("http://a:1", "http://:1"), "neurons[0].endpoint", "allowed: a URL like"),
        (A.replace("http://a:1", "http://a:99999"), "neurons[0].endpoint", "out of range"),
        (A.replace("http://a:1", "http://u:p@a:1"), "neurons[0].endpoint", "belongs in token_file"),
        (A.replace("'a'", "' '"), "neurons[0].name", "1 to 128 printable"),
        (A.replace("'a'", '"a\\nb"'), "neurons[0].name", "1 to 128 printable"),
        (f"[[models]]\nid='{'m' * 129}'", "models[0].id", "1 to 128 printable"),
    ],
)
def test_what_no_key_can_know_alone(tmp_path: Path, text: str, path: str, words: str) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_gateway(file, {})
    (mistake,) = error.value.mistakes
    assert mistake.path == path
    assert words in mistake.text
    assert mistake.line is not None
    assert f"cortex.toml:{mistake.line}: {path}: " in str(error.value)


def test_a_secret_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(A.replace("http://a:1", "http://u:hunter2@a:1"))
    with pytest.raises(ConfigError) as error:
        load_gateway(file, {})
    assert "hunter2" not in str(error.value)


def test_an_alias_may_point_to_a_model_that_only_nodes_know(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text("[aliases]\nx = 'somewhere/else'")
    assert load_gateway(file, {}).aliases == {"x": "somewhere/else"}


def test_an_endpoint_loses_its_trailing_slash(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(A.replace("http://a:1", "http://[fd00::1]:13131/"))
    assert load_gateway(file, {}).neurons[0].endpoint == "http://[fd00::1]:13131"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[neuron]\nlisten='x'", "neuron.listen"),
        ("[neuron]\nmemory_mb=0", "neuron.memory_mb"),
        ("[paths]\nread_mb_s=0", "paths.read_mb_s"),
        ("[[models]]\nid='m'\npath='p'\ncontext=0", "models[0].context"),
        ("[[models]]\nid='m'\npath='p'\nparallel=0", "models[0].parallel"),
        ("[[models]]\nid='m'\npath='p'\ngpu_layers=-2", "models[0].gpu_layers"),
        ("[[models]]\nid='m'\npath='p'\nvram_mb=-1", "models[0].vram_mb"),
        ("[[models]]\nid='m'\npath='p'\n[[models]]\nid='m'\npath='p'", "models[1].id"),
    ],
)
def test_the_neurons_file_is_checked_too(tmp_path: Path, text: str, path: str) -> None:
    file = tmp_path / "neuron.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_neuron(file, {})
    assert [mistake.path for mistake in error.value.mistakes] == [path]


@pytest.mark.parametrize(
    "listen", ["", "unix:/run/cortexd/admin.sock", "[::1]:8081", "[::]:8081", "[::1]:8080"]
)
def test_where_operators_may_be_listened_for(tmp_path: Path, listen: str) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(f"[gateway]\nadmin_listen='{listen}'\n")
    assert load_gateway(file, {}).gateway.admin_listen == listen


def test_two_models_of_one_name_name_both_places(tmp_path: Path) -> None:
    file, second = tmp_path / "cortex.toml", tmp_path / "models.toml"
    file.write_text("[catalogue]\npath = 'models.toml'\n[[models]]\nid = 'm'\n")
    second.write_text("\n[[models]]\nid = 'm'\n")
    with pytest.raises(ConfigError) as error:
        load_gateway(file, {})
    assert str(error.value) == (
        f'{second}:3: models[0].id: "m" is used twice, first in {file}:4; choose another'
    )


def test_who_may_not_read_the_secrets_can_read_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(A + "token_file='none'\n[upstream]\nca_file='none'\n")
    assert load_gateway(file, {}, with_files=False).neurons[0].token_file == "none"


def test_one_variable_is_never_the_token_of_two_nodes(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(A.replace("'a'", "'a-b'") + A.replace("'a'", "'a_b'"))
    load_gateway(file, {})
    with pytest.raises(ConfigError, match='CORTEX_TOKEN__A_B would be the token of "a-b" and'):
        load_gateway(file, {"CORTEX_TOKEN__A_B": "x"})


def test_mistakes_of_shape_and_of_meaning_are_reported_in_one_round(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(
        "[gateway]\nlisten = 8080\nmax_buffered = '1MiB'\nlog = 1\n"
        "[[neurons]]\nname = 'a'\nendpoint = 'a:1'\nweight = 'x'\n"
        "[[neurons]]\nname = 'a'\nendpoint = 'http://b:1'\n"
        "[[models]]\npinned_on = [1, 'c']\n"
    )
    with pytest.raises(ConfigError) as error:
        load_gateway(file, {})
    assert [mistake.path for mistake in error.value.mistakes] == [
        "gateway.listen",
        "gateway.max_buffered",
        "gateway.log",
        "neurons[0].endpoint",
        "neurons[0].weight",
        "neurons[1].name",
        "models[0].id",
        "models[0].pinned_on[0]",
        "models[0].pinned_on[1]",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[gateway]\nmax_body = '1GB'\nmax_buffered = '1MiB'", "gateway.max_body"),
        ("[gateway]\nlisten = 1\nadmin_listen = '0.0.0.0:8080'", "gateway.listen"),
        ("neurons = 1\n[[models]]\nid = 'm'\npinned_on = ['a']", "neurons"),
        (
            "[[neurons]]\nname = 1\nendpoint = 'http://a:1'\n[[models]]\nid = 'm'\n"
            "pinned_on = ['a']",
            "neurons[0].name",
        ),
        ("[[models]]\nid = 1\n[[models]]\nid = 2", "models[0].id"),
        ("aliases = 1", "aliases"),
    ],
)
def test_a_mistake_that_follows_from_another_is_not_reported(
    tmp_path: Path, text: str, path: str
) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_gateway(file, {})
    assert error.value.mistakes[0].path == path
    assert len(error.value.mistakes) == text.count("id = 1") + 1
