"""`[logging]`, which the gateway's file and the neuron's have in common."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json"]


class Logging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[logging]`: what is logged to stderr, and how. Prompts, answers and secrets never are.

    level: the minimum level.
    format: "text" for people, "json" for programs, one line per event; "auto" is text on a
        terminal and in the systemd journal, and json anywhere else.
    """

    level: Level = "info"
    format: Format = "auto"
