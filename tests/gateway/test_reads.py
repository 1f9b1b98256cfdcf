"""What stands at the paths that are only read is `test_app`'s and the parts' own; here is who may
see the metrics where."""

from __future__ import annotations

from cortexd.gateway.reads import MODEL_PREFIX
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet


async def test_operators_see_the_metrics_wherever_else_they_are() -> None:
    async with running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet:
        reads = fleet.gateway._reads
        assert reads.paths["/metrics"] != reads.metrics["/metrics"]
        async with fleet.client.get(fleet.admin_url + "/metrics") as response:
            assert "cortexd_config_last_reload_success 1.0" in await response.text()


async def test_a_models_card_is_read_by_its_name_with_slashes() -> None:
    async with running_fleet(a=FakeNeuron({"org/m": "loaded"})) as fleet:
        assert (await fleet.get(f"{MODEL_PREFIX}org/m")).json["id"] == "org/m"


async def test_an_explanation_needs_a_model() -> None:
    async with running_fleet() as fleet:
        answer = await fleet.get("/api/explain")
        assert (answer.status, answer.json["error"]["code"]) == (400, "missing_model")
