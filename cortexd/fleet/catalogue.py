"""The catalogue in use: model profiles and aliases, looked up by name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortexd.config.catalogue import Profile


class Catalogue(msgspec.Struct, frozen=True):
    """What the fleet may be asked for beyond what its nodes already know.

    sourced: `source:id` → `id`, as a node may report a model it loaded from a source.
    """

    profiles: Mapping[str, Profile] = {}
    aliases: Mapping[str, str] = {}
    sourced: Mapping[str, str] = {}

    @classmethod
    def of(cls, profiles: tuple[Profile, ...], aliases: Mapping[str, str]) -> Catalogue:
        """Index the profiles and aliases of a configuration."""
        return cls(
            {profile.id: profile for profile in profiles},
            dict(aliases),
            {f"{p.source}:{p.id}": p.id for p in profiles if p.source},
        )

    def resolve(self, name: str) -> str:
        """The concrete id that a caller's `model` means."""
        return self.aliases.get(name, name)

    def bare(self, reported: str) -> str:
        """The id of a model that a node reports, without its source."""
        return self.sourced.get(reported, reported)
