"""One model makes room for another, with the real engine from end to end."""

from __future__ import annotations

from pathlib import Path

from tests.functional.swapping import Answers, household


async def test_a_model_that_is_asked_for_takes_the_place_of_one_that_is_idle(
    tmp_path: Path,
) -> None:
    async with household(tmp_path, eviction={"min_residency": "0s"}) as house:
        heard = Answers()
        await house.stream("chat", "Name three colours.", 16, heard)
        await house.message("code", "Name three colours.", 16, heard)
        assert await house.residents() == {"north": ["chat"], "south": ["code"]}

        await house.stream("mail", "Name three colours.", 16, heard)
        assert await house.residents() == {"north": ["mail"], "south": ["code"]}
        await house.raw("code", "Name three colours.", 16, heard)
        await house.raw("chat", "Name three colours.", 16, heard)
        assert await house.residents() == {"north": ["chat"], "south": ["code"]}

        assert heard.routes == {"cold": 4, "loaded": 1}
        assert house.unloads() == {("chat", "north", "room"): 1, ("mail", "north", "room"): 1}
        await house.assert_log_and_metrics_agree()
        await house.assert_nothing_is_left()
