from __future__ import annotations

from cortexd.config.current import Current, Settings
from cortexd.config.gateway import Config


def test_what_is_in_use_is_swapped_as_a_whole() -> None:
    current = Current(Config())
    assert (current.config, current.tokens) == (Config(), {})
    new = Settings(Config(aliases={"x": "m"}), {"a": "t"})
    current.put(new)
    assert (current.config, current.tokens) == (new.config, new.tokens)
