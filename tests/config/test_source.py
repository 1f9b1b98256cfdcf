from __future__ import annotations

from pathlib import Path

import pytest

from cortexd.config.catalogue import Profile
from cortexd.config.gateway import Config, Neuron
from cortexd.config.source import ConfigError, load


def read(place: Path, text: str | bytes, **environ: str) -> Config:
    file = place / "cortex.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(file, Config, environ=environ).value


def mistakes(place: Path, text: str | bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read(place, text, **environ)
    return [line.removeprefix(f"{place}/") for line in str(error.value).splitlines()]


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Config()


def test_a_file_decodes_into_frozen_structs(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [gateway]
        max_body = "1MiB"
        expose_route = false
        [polling]
        interval = "500ms"
        [[neurons]]
        name = "a"
        endpoint = "http://a:13131"
        [[models]]
        id = "m"
        pinned_on = ["a"]
        limit = { context = 10 }
        cost = { input = 0, output = 0.5 }
        [aliases]
        "x/y" = "m"
        """,
    )
    assert config.gateway.max_body == 1 << 20
    assert config.gateway.expose_route is False
    assert config.polling.interval == 0.5
    assert config.neurons == (Neuron("a", "http://a:13131"),)
    assert config.models[0].pinned_on == ("a",)
    assert config.models[0].limit is not None
    assert config.models[0].limit.context == 10
    assert config.models[0].cost is not None
    assert config.models[0].cost.output == 0.5
    assert config.aliases == {"x/y": "m"}
    assert config.models[0] == Profile(
        "m", pinned_on=("a",), limit=config.models[0].limit, cost=config.models[0].cost
    )
    with pytest.raises(AttributeError):
        config.gateway.listen = "x"  # type: ignore[misc]


def test_a_byte_order_mark_and_windows_lines_are_no_matter(tmp_path: Path) -> None:
    config = read(tmp_path, b'\xef\xbb\xbf[gateway]\r\nlisten = ":1"\r\n')
    assert config.gateway.listen == ":1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '\n[gateway]\nlistne = "x"',
            'cortex.toml:3: gateway.listne: unknown key; did you mean "listen"? (allowed: '
            "access_log, admin_listen, cors_origins, expose_route, listen, max_body, max_buffered, "
            "metrics_listen, shutdown_timeout, state_dir)",
        ),
        (
            "[gatway]",
            'cortex.toml:1: gatway: unknown key; did you mean "gateway"? (allowed: aliases, '
            "catalogue, eviction, gateway, loading, logging, models, neurons, polling, routing, "
            "security, upstream)",
        ),
        (
            "[gateway]\nlisten = 8080",
            "cortex.toml:2: gateway.listen: found 8080 (allowed: a string)",
        ),
        (
            '[gateway]\naccess_log = "yes"',
            'cortex.toml:2: gateway.access_log: found "yes" (allowed: true or false)',
        ),
        (
            "[polling]\nunhealthy_after = true",
            "cortex.toml:2: polling.unhealthy_after: found true (allowed: a whole number)",
        ),
        (
            "[polling]\nunhealthy_after = 1.5",
            "cortex.toml:2: polling.unhealthy_after: found 1.5 (allowed: a whole number)",
        ),
        (
            "[polling]\nunhealthy_after = 0",
            "cortex.toml:2: polling.unhealthy_after: found 0 (allowed: a whole number, 1 or more)",
        ),
        (
            "[polling]\ninterval = 2",
            "cortex.toml:2: polling.interval: found 2 (allowed: a duration with a unit, like "
            '"500ms", "10s" or "30m")',
        ),
        (
            '[polling]\ninterval = "-2s"',
            'cortex.toml:2: polling.interval: found "-2s" (allowed: a duration with a unit, '
            'like "500ms", "10s" or "30m")',
        ),
        (
            '[gateway]\nmax_body = "64MB"',
            'cortex.toml:2: gateway.max_body: found "64MB" (allowed: a size with a unit, '
            'like "512KiB", "64MiB" or "1GiB")',
        ),
        ("gateway = 3", "cortex.toml:1: gateway: found 3 (allowed: a table)"),
        ("[neurons]", "cortex.toml:1: neurons: found a table (allowed: an array of [[tables]])"),
        (
            "[[neurons]]\nname = 'a'",
            "cortex.toml:1: neurons[0].endpoint: missing (allowed: a string)",
        ),
        ("[[models]]", "cortex.toml:1: models[0].id: missing (allowed: a string)"),
        (
            "[[models]]\nid = 'm'\nmin_devices = 0",
            "cortex.toml:3: models[0].min_devices: found 0 (allowed: a whole number, 1 or more)",
        ),
        (
            "[[models]]\nid = 'm'\nvram_mb = -1",
            "cortex.toml:3: models[0].vram_mb: found -1 (allowed: a whole number, 0 or more)",
        ),
        (
            "[[models]]\nid = 'm'\npinned_on = 'a'",
            'cortex.toml:3: models[0].pinned_on: found "a" (allowed: an array, each a string)',
        ),
        (
            "[[models]]\nid = 'm'\npinned_on = ['a',\n 3]",
            "cortex.toml:4: models[0].pinned_on[1]: found 3 (allowed: a string)",
        ),
        (
            "[[models]]\nid = 'm'\nlimit = { contxt = 1 }",
            'cortex.toml:3: models[0].limit.contxt: unknown key; did you mean "context"? '
            "(allowed: context, input, output)",
        ),
        (
            "[[models]]\nid = 'm'\ncost = { input = 'free' }",
            'cortex.toml:3: models[0].cost.input: found "free" (allowed: a number)',
        ),
        ("[aliases]\n'x y' = 3", 'cortex.toml:2: aliases."x y": found 3 (allowed: a string)'),
        (
            "[gateway\n",
            "cortex.toml:1: not valid TOML: Expected ']' at the end of a table declaration",
        ),
        ("[a]\n\n[a]", "cortex.toml:3: not valid TOML: Cannot declare ('a',) twice"),
        (b"x = '\xff'", "cortex.toml:1: not UTF-8 at byte 5; save the file as UTF-8"),
    ],
)
def test_a_mistake_names_file_line_key_what_was_found_and_what_is_allowed(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path, "[polling]\ninterval = 1\n[gateway]\nlisten = 2\nnope = 3\n[[models]]\n"
    )
    assert [line.partition(": ")[0] for line in found] == [
        "cortex.toml:2",
        "cortex.toml:4",
        "cortex.toml:5",
        "cortex.toml:6",
    ]


def test_a_file_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: can't be read: No such file"):
        load(tmp_path / "nowhere.toml", Config)
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path, Config)


def test_the_environment_overrides_scalar_keys_of_tables(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "[gateway]\nlisten = ':1'",
        CORTEX_GATEWAY__LISTEN=":2",
        CORTEX_GATEWAY__METRICS_LISTEN=":3",
        CORTEX_GATEWAY__EXPOSE_ROUTE="False",
        CORTEX_GATEWAY__MAX_BODY="2KiB",
        CORTEX_POLLING__UNHEALTHY_AFTER="7",
        CORTEX_LOADING__TIMEOUT="1h",
        CORTEX_NEURON__LISTEN="for the neuron",
        CORTEX_HOME="has no divider",
        OTHER_GATEWAY__LISTEN="is another program's",
    )
    assert config.gateway.listen == ":2"
    assert config.gateway.metrics_listen == ":3"
    assert config.gateway.expose_route is False
    assert config.gateway.max_body == 2048
    assert config.polling.unhealthy_after == 7
    assert config.loading.timeout == 3600


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CORTEX_GATEWAY__LISTNE", ":1", 'gateway.listne: unknown key; did you mean "listen"?'),
        (
            "CORTEX_GATEWAY__ACCESS_LOG",
            "1",
            'gateway.access_log: found "1" (allowed: true or false',
        ),
        (
            "CORTEX_POLLING__UNHEALTHY_AFTER",
            "x",
            'polling.unhealthy_after: found "x" (allowed: a whole',
        ),
        ("CORTEX_POLLING__INTERVAL", "2", 'polling.interval: found "2" (allowed: a duration'),
        ("CORTEX_SECURITY__ALLOWED_INFERENCE_HOSTS", "x", "allowed: an array"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, expected: str) -> None:
    (found,) = mistakes(tmp_path, "", **{name: value})
    assert found.startswith(f"{name}: ")
    assert expected in found


def test_where_a_value_came_from_is_known(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text("[gateway]\nlisten = ':1'\n[catalogue]\npath = 'm.toml'\n[[models]]\nid = 'a'")
    (tmp_path / "m.toml").write_text("\n[[models]]\n\nid = 'b'\n")
    further = ("models", ("catalogue", "path"))
    value, source = load(file, Config, environ={"CORTEX_POLLING__TIMEOUT": "9s"}, further=further)
    assert [profile.id for profile in value.models] == ["a", "b"]
    assert str(source.origin(("gateway", "listen"))) == f"{file}:2"
    assert str(source.origin(("gateway", "max_body"))) == "default"
    assert str(source.origin(("polling", "timeout"))) == "CORTEX_POLLING__TIMEOUT"
    assert str(source.origin(("models", 0, "id"))) == f"{file}:6"
    assert str(source.origin(("models", 1, "id"))) == f"{tmp_path / 'm.toml'}:4"
    assert str(source.origin(("models", 1, "harness"))) == "default"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[models]]\nid = 3", "m.toml:2: models[0].id: found 3 (allowed: a string)"),
        ("[[models]", "m.toml:1: not valid TOML: Expected ']]' at the end of an array declaration"),
        ("[[model]]", 'm.toml:1: model: unknown key; did you mean "models"? (allowed: models)'),
        ("models = 3", "m.toml:1: models: found 3 (allowed: an array of [[tables]])"),
        (
            "[[models]]\nid = 'x'\nvram = 1\n",
            'm.toml:3: models[0].vram: unknown key; did you mean "vram_mb"?',
        ),
        (b"\xff", "m.toml:1: not UTF-8 at byte 0"),
    ],
)
def test_a_mistake_in_a_second_file_names_that_file_and_its_line(
    tmp_path: Path, text: str | bytes, expected: str
) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text("[catalogue]\npath = 'm.toml'\n[[models]]\nid = 'a'\n[gateway]\nlisten = 1\n")
    (tmp_path / "m.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as error:
        load(file, Config, environ={}, further=("models", ("catalogue", "path")))
    own, second = str(error.value).replace(f"{tmp_path}/", "").splitlines()
    assert own == "cortex.toml:6: gateway.listen: found 1 (allowed: a string)"
    assert second.startswith(expected)


def test_a_second_file_that_is_not_there_is_the_keys_mistake(tmp_path: Path) -> None:
    file = tmp_path / "cortex.toml"
    file.write_text("[catalogue]\npath = 'no.toml'\n")
    with pytest.raises(ConfigError) as error:
        load(file, Config, environ={}, further=("models", ("catalogue", "path")))
    assert str(error.value) == (
        f"{file}:2: catalogue.path: {tmp_path / 'no.toml'}: can't be read: "
        "No such file or directory"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[aliases]\ngpt-3.5-turbo = 'm'",
            '2: aliases.gpt-3.5-turbo: a dot in a name; put the name in quotes: "gpt-3.5-turbo"',
        ),
        (
            "[aliases]\na.b.c = 'm'",
            '2: aliases.a.b.c: a dot in a name; put the name in quotes: "a.b.c"',
        ),
        (
            "[aliases]\nteam/small = 'm'",
            "2: not valid TOML: Expected '=' after a key in a key/value pair; put the name in "
            'quotes: "team/small"',
        ),
        (
            "[aliases]\ngpt-4 = 'm'\ngpt-4.1 = 'n'\n[gateway]",
            '3: not valid TOML: Cannot overwrite a value; put the name in quotes: "gpt-4.1"',
        ),
        (
            "[aliases]\ngpt-4.1 = 'm'\ngpt-4 = 'n'\n[gateway]",
            "3: not valid TOML: Cannot overwrite a value; put the name in line 2 in quotes: "
            '"gpt-4.1"',
        ),
    ],
)
def test_name_that_needs_quotes_is_named_in_quotes(tmp_path: Path, text: str, line: str) -> None:
    assert mistakes(tmp_path, text) == [f"cortex.toml:{line}"]
