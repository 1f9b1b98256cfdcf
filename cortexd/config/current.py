"""The configuration in use, behind one reference that a reload swaps."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortexd.config.certificates import Certificates
from cortexd.config.gateway import Config


class Settings(msgspec.Struct, frozen=True):
    """A valid configuration, and the secrets that it names.

    tokens: node → the bearer token of its neuron. certificates: the authorities to trust.
    """

    config: Config
    tokens: Mapping[str, str] = {}
    certificates: Certificates = Certificates()


class Current:
    """What is in use now. Read it where it is used and keep nothing of it: then a reload, which
    alone puts other settings here, holds for the next request."""

    __slots__ = ("certificates", "config", "tokens")

    def __init__(
        self,
        config: Config,
        tokens: Mapping[str, str] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self.put(Settings(config, tokens or {}, certificates or Certificates()))

    @property
    def settings(self) -> Settings:
        """The settings in use, as one value."""
        return Settings(self.config, self.tokens, self.certificates)

    def put(self, settings: Settings) -> None:
        """From now on it is these, all of them."""
        self.config: Config = settings.config
        self.tokens: Mapping[str, str] = settings.tokens
        self.certificates: Certificates = settings.certificates
