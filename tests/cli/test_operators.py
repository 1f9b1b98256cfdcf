"""How commands find the gateway: by its admin_listen, in every form that it may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import cortexd
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet


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
