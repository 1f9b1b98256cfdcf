from __future__ import annotations

from cortexd.config.catalogue import Profile
from cortexd.fleet.catalogue import Catalogue


def test_an_alias_means_its_model_and_any_other_name_itself() -> None:
    catalogue = Catalogue.of((Profile("a/b"),), {"small": "a/b"})
    assert catalogue.resolve("small") == "a/b"
    assert catalogue.resolve("a/b") == "a/b"
    assert catalogue.resolve("nobody") == "nobody"


def test_only_a_profiles_own_source_is_taken_off_a_reported_id() -> None:
    catalogue = Catalogue.of((Profile("a/b", source="hf"),), {})
    assert catalogue.bare("hf:a/b") == "a/b"
    assert catalogue.bare("llama3:8b") == "llama3:8b"
