"""What a scenario is made of: hosts, models, and who asks for what."""

from __future__ import annotations

from dataclasses import dataclass

from cortexd.config.catalogue import Profile


@dataclass(frozen=True, slots=True)
class Host:
    """A GPU host.

    devices: MiB of each. desktop: MiB of the first one that other programs hold all the time.
    bandwidth: GB/s of a device's memory, which bounds decoding.
    prefill: prompt tokens per second with a model of 8 billion active parameters.
    disk: MiB/s at which weights come in.
    """

    name: str
    devices: tuple[int, ...]
    bandwidth: float
    prefill: float
    disk: float
    desktop: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Sort:
    """A model.

    vram: MiB that it takes in truth, over all of its devices; the weights are `weights` of them.
    active: billions of parameters that each token needs.
    slots: requests that it answers at a time. cache: tokens of conversations that it can keep.
    known: MiB that the catalogue says it needs; None: it does not say; by default the truth.
    """

    name: str
    vram: int
    weights: int
    active: float
    devices: int = 1
    slots: int = 8
    cache: int = 80_000
    known: int | None = -1
    replicas: int | None = None

    def profile(self) -> Profile:
        """Its table in the catalogue."""
        known = self.vram if self.known == -1 else self.known
        return Profile(self.name, vram_mb=known, min_devices=self.devices, replicas=self.replicas)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet and its traffic.

    sorts: the most popular one first. skew: of Zipf's law; 0: all are equally popular.
    every: mean seconds between two new conversations. turns: mean number of them in one.
    think: median seconds from an answer to the next turn.
    """

    name: str
    hosts: tuple[Host, ...]
    sorts: tuple[Sort, ...]
    skew: float
    every: float
    turns: float = 4.0
    think: float = 20.0
    systems: tuple[int, ...] = (80, 600, 2500)  # tokens of the system texts in use


@dataclass(slots=True)
class Turn:
    """One request: a turn of a conversation. Times are the clock's.

    talk: the conversation, which is also the affinity key. system: which system text it opens with.
    prompt: all its tokens, with what was said so far. answer: tokens of the answer.
    cached: tokens of the prompt that were found in the replica's cache.
    outcome: `answered`, `refused` or `cut`, once it has ended; code: of the refusal.
    """

    model: str
    talk: str
    system: str
    system_tokens: int
    prompt: int
    answer: int
    arrived: float = 0.0
    first: float | None = None
    cached: int = 0
    passes: int = 0
    outcome: str | None = None
    code: str | None = None
