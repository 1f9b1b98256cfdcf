"""The fleets and the traffic that policies are compared on."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

from bench.sim.things import Host, Scenario, Sort

# MiB, GB/s, tokens/s, MiB/s. Weights as an operator would set them: by how fast a host decodes.
GAMING = Host("attic-3060", (12_288,), 360, 1500, 500, desktop=900, weight=0.5)
DESK = Host("desk-4090", (24_564,), 1008, 6000, 2500, desktop=1200)
TOWER = Host("tower-2x5090", (32_607, 32_607), 1792, 9000, 5000, weight=1.5)
RACK = Host("rack-4x48", (49_140,) * 4, 864, 7000, 1200)

# MiB resident, MiB of weights, billions of active parameters.
CHAT_8 = Sort("chat-8b", 9_500, 5_000, 8)
CODER = Sort("coder-30b-a3b", 21_500, 18_500, 3.3)
SMALL = Sort("small-2b", 3_200, 1_300, 1.7, slots=16)
CHAT_32 = Sort("chat-32b", 23_500, 19_800, 32)
VISION = Sort("vision-7b", 10_800, 6_200, 8)
CHAT_70 = Sort("chat-70b", 46_000, 40_500, 70, devices=2, slots=4)
WRITER = Sort("writer-14b", 13_000, 9_000, 14)
LARGE = Sort("large-123b", 88_000, 73_000, 123, devices=4, slots=4)
REASON_32 = replace(CHAT_32, name="reason-32b")
AGENT = replace(CODER, name="agent-30b-a3b")
LEGAL = replace(WRITER, name="legal-14b")
MEDIC = replace(CHAT_8, name="medic-8b")
OTHER_70 = replace(CHAT_70, name="other-70b")

HOME = Scenario(
    "mixed home fleet",
    (GAMING, DESK, TOWER, RACK),
    (
        CHAT_8,
        CODER,
        SMALL,
        CHAT_32,
        VISION,
        CHAT_70,
        WRITER,
        AGENT,
        REASON_32,
        LARGE,
        MEDIC,
        OTHER_70,
        LEGAL,
    ),
    skew=1.0,
    every=5.0,
)

LAB = Scenario(
    "lab with one hot model and replicas",
    (
        *(replace(DESK, name=f"lab-{at}-4090", desktop=0) for at in range(1, 4)),
        replace(TOWER, name="lab-4-2x5090"),
        replace(GAMING, name="lab-5-3060", desktop=0),
    ),
    (
        replace(CHAT_8, name="hot-8b", replicas=4),
        replace(SMALL, name="embed-2b"),
        VISION,
        WRITER,
    ),
    skew=2.5,
    every=1.8,
    turns=6,
)

THRASH = Scenario(
    "more models than memory: thrash",
    (DESK, TOWER),
    (CHAT_8, CODER, CHAT_32, VISION, WRITER, CHAT_70, REASON_32, AGENT, LEGAL, MEDIC),
    skew=0.4,
    every=25.0,
    think=15.0,
)

GUESSED = replace(
    HOME,
    name="mixed home fleet, footprints guessed or unknown",
    sorts=tuple(
        replace(sort, known=None if guess is None else int(sort.vram * guess))
        for sort, guess in zip(HOME.sorts, cycle((0.7, 1.2, None, 0.85, 1.0)), strict=False)
    ),
)

SCENARIOS = (HOME, LAB, THRASH, GUESSED)
