"""Configs of the study stages; torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from m4v.core.config import FrozenModel

MAX_SYSTEMS = 9  # ranks are typed as one digit


class Criterion(FrozenModel):
    """What a participant judges by: `title` heads it, `question` explains it."""

    key: str = Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")
    title: str = Field(min_length=1, max_length=60)
    question: str = Field(min_length=1, max_length=300)


CRITERIA = (
    Criterion(key="aesthetic", title="Aesthetic quality", question="Which looks better: composition, light, detail?"),
    Criterion(key="motion", title="Motion smoothness", question="Which moves more naturally, without jumps or wobble?"),
    Criterion(key="semantic", title="Semantic coherence", question="Which shows more of what the description says?"),
)
CONSENT = (
    "I take part of my own free will and may stop at any time. My ratings are stored under a number without my name "
    "and may be published in summary."
)


class StudyConfig(FrozenModel):
    """A study over the sample sets that are the stage's inputs `samples.SYSTEM`.

    - mode: rank all systems of a prompt from 1 (best), or compare two at a time.
    - prompts: at most so many of those that every system has, drawn by the seed.
    - sample: which of a prompt's samples is shown.
    - tasks: of one participant; none: every prompt (or every pair of every prompt).
    - ties: whether two systems may be given one rank, or a pair no preference.
    """

    title: str = Field(default="Which video is better?", min_length=1, max_length=120)
    mode: Literal["rank", "pairwise"] = "rank"
    systems: tuple[str, ...] = Field(min_length=2, max_length=MAX_SYSTEMS)
    criteria: tuple[Criterion, ...] = Field(default=CRITERIA, min_length=1, max_length=6)
    prompts: int = Field(default=50, ge=1, le=2000)
    sample: int = Field(default=0, ge=0)
    tasks: int | None = Field(default=None, ge=1)
    ties: bool = False
    seed: int = Field(default=0, ge=0)
    consent: str = Field(default=CONSENT, min_length=1, max_length=2000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.systems)) != len(self.systems):
            raise ValueError("a system stands twice")
        if len({c.key for c in self.criteria}) != len(self.criteria):
            raise ValueError("a criterion stands twice")
        return self


class ResultsConfig(FrozenModel):
    """`answers` is the sha256 of the answers' snapshot, which lies by that name at location `answers`. Intervals are a
    bootstrap over participants. `keep_all`: count also those who always chose the same place."""

    answers: str = Field(pattern=r"^[0-9a-f]{64}$")
    resamples: int = Field(default=1000, ge=100, le=100_000)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    keep_all: bool = False
