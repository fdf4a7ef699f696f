"""How large the generated ledger is, and what its parts are called."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

SHARD = 1000  # samples
SOURCES = ("webvid", "openvid", "open-sora-plan", "synthetic")
BUCKETS = (
    (1, 48, 80),
    (8, 48, 80),
    (8, 80, 48),
    (16, 48, 80),
    (16, 96, 160),
    (31, 48, 80),
    (31, 96, 160),
    (31, 160, 96),
)
# Stage, frames, steps: a ladder. Its draws a step are 256 and more, its first stage has 100,000 steps.
LADDER = (
    ("t2i", 1, 100_000),
    ("57f", 57, 50_000),
    ("121f", 121, 30_000),
    ("241f", 241, 20_000),
    ("reward", 241, 2_000),
)
SEEDS = (7, 11)
VERSIONS = 50


@dataclass(frozen=True)
class Sizes:
    """Each dataset version adds `batch` clips to the version before it."""

    batch: int
    ladders: int  # on each version
    runs: int
    scale: float

    @classmethod
    def scaled(cls, scale: float) -> Sizes:
        """`scale` 1: 5 M clips, 50 versions, 10 k checkpoints, 100 k runs."""
        ladders = max(1, round(40 * scale))
        trained = VERSIONS * ladders * len(LADDER)
        return cls(max(len(BUCKETS), round(100_000 * scale)), ladders, max(round(100_000 * scale), 2 * trained), scale)

    def steps(self, stage: str) -> int:
        """Of a stage of the ladder: with fewer clips fewer steps, so that epochs stay as many."""
        return next(max(10, round(steps * self.scale)) for name, _, steps in LADDER if name == stage)

    @property
    def shards(self) -> int:
        """That a version adds."""
        return -(-self.batch // SHARD)

    @property
    def clips(self) -> int:
        return self.batch * VERSIONS

    @property
    def checkpoints(self) -> int:
        return VERSIONS * self.ladders * len(LADDER)


def identity(*parts: object) -> str:
    """An artifact's id, or any other digest."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
