"""Commands find the gateway by its admin_listen, in each of its forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from cortexd.config.catalogue import Profile
from cortexd.config.current import Settings
from cortexd.config.source import ConfigError, Mistake
from tests.cli.commands import cortexd
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet
from tests.gateway.reloading import is_on_disk


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0.0.0.0", "localhost", "", "[::]", "[::1]"], ids=lambda host: host or "-"
)
async def test_command_reaches_the_admin_listener_as_it_is_configured(
    tmp_path: Path, host: str
) -> None:
    async with running_fleet(admin_listen=f"{host}:0", a=FakeNeuron()) as fleet:
        port = fleet.gateway.admin_address.rpartition(":")[2]
        file = tmp_path / "cortex.toml"
        file.write_text(f"[gateway]\nadmin_listen = '{host}:{port}'\n")
        status, out, err = await cortexd("status", "--config", str(file), cwd=tmp_path)
        assert (status, err) == (0, "")
        assert out.startswith("1 of 1 node up")


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_localhost_means_both_families_for_a_command(tmp_path: Path, address: str) -> None:
    async with running_fleet(admin_listen=f"{address}:0", a=FakeNeuron()) as fleet:
        port = fleet.gateway.admin_address.rpartition(":")[2]
        url = f"http://localhost:{port}"
        status, out, err = await cortexd("status", "--url", url, cwd=tmp_path)
        assert (status, err) == (0, "")
        assert out.startswith("1 of 1 node up")


@pytest.mark.parametrize("command", [("status",), ("reload",), ("load", "m"), ("drain", "a")])
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "unix:/nowhere/sock"])
async def test_command_says_that_no_gateway_is_listening_and_asks_whether_it_runs(
    tmp_path: Path, command: tuple[str, ...], url: str
) -> None:
    assert await cortexd(*command, "--url", url, cwd=tmp_path) == (
        (1, "", f"No gateway is listening at {url}. Is it running (cortexd serve)?\n")
    )


@pytest.mark.parametrize(
    ("command", "suggestion"),
    [
        (("load", "smal"), " Did you mean 'small'?"),
        (("load", "qwen3-8b"), " Did you mean 'Qwen/Qwen3-8B'?"),
        (("unload", "QWEN/qwen3-8b"), " Did you mean 'Qwen/Qwen3-8B'?"),
        (("explain", "Qwen/Qwen3-8"), " Did you mean 'Qwen/Qwen3-8B'?"),
        (("drain", "beats"), " Did you mean 'beast'?"),
        (("load", "small", "--node", "beats"), " Did you mean 'beast'?"),
        (("load", "something else"), ""),
    ],
)
async def test_unknown_model_or_node_gets_a_suggestion(
    tmp_path: Path, command: tuple[str, ...], suggestion: str
) -> None:
    async with running_fleet(
        Profile("Qwen/Qwen3-8B"), aliases={"small": "Qwen/Qwen3-8B"}, beast=FakeNeuron()
    ) as fleet:
        _, out, err = await cortexd(*command, "--url", fleet.admin_url, cwd=tmp_path)
        assert ("Did you mean" in out + err) == bool(suggestion)
        assert suggestion in " ".join((out + err).split("\n"))


async def test_answer_is_printed_when_the_gateway_stops_before_it_lists_its_models(
    tmp_path: Path,
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await site.stop()  # takes no further connection
        error = {"message": "No such model.", "code": "model_not_found"}
        response = web.json_response({"error": error}, status=404)
        response.force_close()
        return response

    app = web.Application()
    app.router.add_post("/api/models/x/unload", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        said = await cortexd("unload", "x", "--url", url, cwd=tmp_path)
        assert said == (1, "", "No such model.\n")
    finally:
        await runner.cleanup()


async def test_reload_prints_what_changed_and_what_needs_a_restart(tmp_path: Path) -> None:
    async with running_fleet(a=FakeNeuron()) as fleet:
        reload = ("reload", "--url", fleet.admin_url)
        is_on_disk(fleet)
        assert await cortexd(*reload, cwd=tmp_path) == (0, "reloaded: nothing has changed\n", "")
        config = fleet.gateway._current.config
        is_on_disk(
            fleet,
            models=(Profile("m"),),
            upstream=type(config.upstream)(retries=5, ca_file="x"),
        )
        status, out, err = await cortexd(*reload, cwd=tmp_path)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "reloaded:"
        assert "  upstream.retries changed" in lines
        assert '  models."m" added' in lines


async def test_reload_that_is_refused_is_status_1_and_names_the_mistake(tmp_path: Path) -> None:
    def read() -> Settings:
        raise ConfigError(tmp_path / "cortex.toml", [Mistake("gateway.listen", "found 3", 2)])

    async with running_fleet(a=FakeNeuron()) as fleet:
        fleet.gateway.reload._read = read
        status, out, err = await cortexd("reload", "--url", fleet.admin_url, cwd=tmp_path)
        assert (status, out) == (1, "")
        assert f"{tmp_path}/cortex.toml:2: gateway.listen: found 3" in err
