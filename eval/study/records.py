"""Files of a study: `study.json`, the snapshot of its answers, and `results.json`."""

from __future__ import annotations

from typing import Literal

from eval.study.config import Criterion
from m4v.core.config import FrozenModel

STUDY, RESULTS, SNAPSHOT, TABLE = "study.json", "results.json", "answers.json", "answers.csv"


class StudySystem(FrozenModel):
    """One system and where its videos came from."""

    name: str
    samples: str
    checkpoint: str


class StudyPrompt(FrozenModel):
    """`videos`: blind file of each system."""

    text: str
    videos: dict[str, str]


class Study(FrozenModel):
    """`study.json`: everything that decides what a participant sees."""

    schema_version: int = 1
    title: str
    mode: Literal["rank", "pairwise"]
    criteria: tuple[Criterion, ...]
    systems: tuple[StudySystem, ...]
    prompts: tuple[StudyPrompt, ...]
    tasks: int | None
    ties: bool
    seed: int
    consent: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.systems)


class Answer(FrozenModel):
    """What one participant said of one task. `said[criterion]`: for ranks, the rank of each shown place; for a pair,
    one number: 1 or 2 for the better place, 0 for no preference."""

    participant: str
    task: str
    prompt: int
    shown: tuple[str, ...]
    said: dict[str, tuple[int, ...]]


class Snapshot(FrozenModel):
    """Answers that stand, each task of a participant once, in order; `revoked` participants among them."""

    schema_version: int = 1
    study: str
    invited: int
    revoked: tuple[str, ...]
    answers: tuple[Answer, ...]


class Excluded(FrozenModel):
    participant: str
    reason: str
    answers: int


class SystemResult(FrozenModel):
    """`strength` is the Bradley-Terry log-ability, the mean of all systems being 0; `win_rate` the share of comparisons
    won, ties half. Intervals are over participants; None where there are too few."""

    system: str
    comparisons: int
    mean_rank: float | None
    mean_rank_interval: tuple[float, float] | None
    win_rate: float | None
    win_rate_interval: tuple[float, float] | None
    strength: float
    strength_interval: tuple[float, float] | None


class CriterionResult(FrozenModel):
    """`wins[i][j]`: how often system i was preferred to j, ties half. `kendall_w` is the mean over prompts of the
    agreement among those who ranked it; None for pairs."""

    criterion: str
    title: str
    systems: tuple[SystemResult, ...]
    wins: tuple[tuple[float, ...], ...]
    kendall_w: float | None
    krippendorff_alpha: float | None


class StudyResults(FrozenModel):
    """`results.json`. `complete` counts participants who did every task of theirs."""

    schema_version: int = 1
    study: str
    mode: Literal["rank", "pairwise"]
    invited: int
    participants: int
    complete: int
    answers: int
    confidence: float
    excluded: tuple[Excluded, ...]
    criteria: tuple[CriterionResult, ...]
