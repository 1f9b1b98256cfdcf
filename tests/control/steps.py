"""What may happen between nodes, clients and the gateway: the steps of which a test is a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cortexd.config.catalogue import Profile

# What may happen. Nobody has a turn between two steps unless one of them is a Turn or a Pass.


@dataclass(frozen=True)
class Ask:
    """A request comes. hold: seconds at the node. busy: which turns it away at first."""

    model: str
    hold: float = 0
    busy: bool = False
    served: bool = True


@dataclass(frozen=True)
class Leave:
    """A client goes, waiting or served."""

    which: int = 0


@dataclass(frozen=True)
class Answer:
    """A POST /models/load is answered."""

    which: int = 0
    how: Literal["loaded", "loading", 400, 500, "lost"] = "loaded"


@dataclass(frozen=True)
class Poll:
    """A poll comes back. status: of each model listed; age: seconds since it was sent."""

    node: str
    status: tuple[tuple[str, str], ...] = ()
    fraction: float | None = None
    age: float = 0
    fails: bool = False
    restarted: bool = False
    servable: bool = True


@dataclass(frozen=True)
class Serves:
    """What a node answers when it is asked for an endpoint: a status, after some seconds."""

    node: str
    status: int = 200
    takes: float = 0


@dataclass(frozen=True)
class Operate:
    model: str
    node: str


@dataclass(frozen=True)
class Cancel:
    model: str


@dataclass(frozen=True)
class Turn:
    """So many turns of the loop."""

    turns: int = 1


@dataclass(frozen=True)
class Pass:
    """All who can go on do; then so many seconds pass."""

    seconds: float = 0


@dataclass(frozen=True)
class Close:
    """The gateway shuts down."""


Step = Ask | Leave | Answer | Poll | Serves | Operate | Cancel | Turn | Pass | Close


@dataclass(frozen=True)
class Setting:
    """takes: what a node says that it takes at a time (max_in_flight, max_queue_depth)."""

    profiles: tuple[Profile, ...] = (Profile("m"),)
    takes: tuple[tuple[str, tuple[int, int] | None], ...] = (("a", None), ("b", None))
    timeout: float = 40
    max_waiting: int = 1000
    polled: bool = True
