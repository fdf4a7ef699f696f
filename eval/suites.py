"""Suites as plugs: what VBench, VBench-Long, -I2V or -2.0 offer to whoever evaluates samples. Torch-free.

A suite is asked in this order: `requirements` (before the first video is sampled), `inputs` (which video goes where,
every one counted), `run` (one dimension after the other, each of which may fail alone), `aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self, runtime_checkable

from pydantic import Field, JsonValue, model_validator

from eval.records import SampleSet
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError

Mode = Literal["standard", "custom"]
Status = Literal["measured", "failed", "refused"]


class Requirement(FrozenModel):
    """Something that must be on the machine before `dimensions` can be measured.

    - kind: `file` (weights), `folder` (a repository), `environment` (an interpreter with packages, a container).
    - place: where it is looked for; `variable`: the environment variable that moves the place.
    - problem: why it cannot be used; None: it is there and sound.
    - approx_bytes: about how large it is where it is not there, as far as that is known.
    """

    name: str
    kind: Literal["file", "folder", "environment"]
    dimensions: tuple[str, ...]
    place: str
    present: bool
    problem: str | None = None
    size_bytes: int | None = None
    approx_bytes: int | None = None
    sha256: str | None = None
    source: str | None = None
    variable: str | None = None
    next_step: str | None = None


class SuiteVideo(FrozenModel):
    """One video of the samples. `file` is its name in the artifact, `prompt` what it is scored against (the short
    prompt where a lengthened one was sampled), `name` what the suite wants the file to be called."""

    file: str
    name: str
    prompt: str
    prompt_index: int
    sample_index: int


class SuiteInputs(FrozenModel):
    """Videos of each dimension, in the order of (prompt, sample).

    - mode: `standard` finds prompts by file names, `custom` by a map of names to prompts.
    - prompt_set: `vbench`, `vbench-longer`, …; `own` for prompts that the suite does not know.
    - partial: some videos of the protocol are missing on purpose; such a result is comparable with none.
    """

    mode: Mode
    prompt_set: str
    samples: str = Field(description="artifact id")
    partial: bool = False
    by_dimension: dict[str, tuple[SuiteVideo, ...]]


class VideoRow(FrozenModel):
    """A dimension's value of one video, in the dimension's own scale made a fraction: 0..1, booleans 0 or 1.
    `value` None: the suite says nothing of this video (a filter left it out)."""

    file: str
    prompt_index: int
    sample_index: int
    value: float | None


class DimensionResult(FrozenModel):
    """What a dimension gave. `score` is a fraction, recomputed from `rows`; a dimension that failed or was refused
    has neither and says why in `reason`. `expected`: videos that the protocol wants."""

    dimension: str
    status: Status
    expected: int
    score: float | None = None
    rows: tuple[VideoRow, ...] = ()
    reason: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.status == "measured") != (self.score is not None):
            raise ValueError(f"{self.dimension}: a score stands with status measured, and only there")
        if self.status != "measured" and not self.reason:
            raise ValueError(f"{self.dimension}: {self.status} needs a reason")
        return self

    @property
    def videos(self) -> int:
        """How many went into the score."""
        return sum(row.value is not None for row in self.rows)


class Tooling(FrozenModel):
    """What measured, as far as it can move a number: part of a result's identity."""

    suite: str
    version: str
    environments: dict[str, str] = {}  # by name: digest of what is installed
    weights: dict[str, str] = {}  # by name: sha256
    options: dict[str, JsonValue] = {}


class Aggregate(FrozenModel):
    """Figures over dimensions, as fractions; None with the dimensions in `missing` that would be needed."""

    figures: dict[str, float | None]
    missing: dict[str, tuple[str, ...]] = {}


@runtime_checkable
class Suite(Protocol):
    """`folder` of `run` is scratch that the suite may keep links, requests and results in; a second `run` on the same
    folder goes on with what is finished there."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> tuple[str, ...]: ...

    def requirements(self, dimensions: Sequence[str]) -> tuple[Requirement, ...]:
        """What the machine must have, present or not; looks, and changes nothing."""

    def inputs(
        self, samples: SampleSet, samples_id: str, dimensions: Sequence[str], *, partial: bool = False
    ) -> SuiteInputs:
        """Raises DataIntegrityError naming count and first example when videos are missing, unless `partial`."""

    def tooling(self, dimensions: Sequence[str]) -> Tooling:
        """Versions, environments and weights as they are now."""

    def run(self, inputs: SuiteInputs, videos: Path, folder: Path) -> Iterator[DimensionResult]:
        """Results as they come; `videos` is the local folder of the samples artifact. A crash, time limit or lack of
        memory is a result with status `failed`, never an exception."""

    def aggregate(self, results: Sequence[DimensionResult]) -> Aggregate:
        """Totals by the suite's rule; never of fewer dimensions than they want."""


def check_dimensions(suite: str, known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """`wanted` in the suite's order; raises ConfigError for one that it does not have, or none at all."""
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"{suite} has no such dimension", value=unknown[0], next_step=f"dimensions: {', '.join(known)}"
        )
    if not wanted:
        raise ConfigError("no dimension was asked for", where=suite, next_step=f"dimensions: {', '.join(known)}")
    return tuple(name for name in known if name in wanted)
