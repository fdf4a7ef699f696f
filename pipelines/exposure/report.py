"""Exposure of one checkpoint: what each stage of its line consumed, and the verdict on clips.

summary = summarise(ledger, checkpoint_id)
verdicts = clip_exposure(ledger, checkpoint_id, parse_selector(["3fa9c2d0"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.exposure.uses import ClipUses, plans_of
from pipelines.exposure.verdict import Verdict
from pipelines.ledger import Ledger
from pipelines.ledger.exposures import StateRow
from pipelines.membership import ClipFacts, ClipSelector
from training.sampling import SamplingPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDraws:
    """What a stage drew up to its checkpoint. `samples` counts draws; `distinct` different samples of the `available`
    ones, each counted once a mixture entry that takes it; `epochs` is draws a sample available."""

    checkpoint_id: str
    stage: str
    dataset_id: str | None
    seed: int
    steps: int
    samples: int
    distinct: int
    available: int
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUses:
    """Uses of a clip by one stage of a line. `held`: its dataset holds the clip. `steps` only where asked for."""

    checkpoint_id: str
    stage: str
    dataset_id: str | None
    held: bool
    uses: int
    first_step: int | None
    last_step: int | None
    steps: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipVerdict:
    """A clip and a checkpoint. `verdict` None: no dataset that the line trained on holds the clip."""

    clip: ClipFacts
    verdict: Verdict | None
    stages: tuple[StageUses, ...]

    @property
    def uses(self) -> int:
        """By all stages of the line."""
        return sum(stage.uses for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        stages = [asdict(s) for s in self.stages]
        for stage in stages:
            if stage["steps"] is None:
                del stage["steps"]
        return {"clip": asdict(self.clip), "verdict": self.verdict, "uses": self.uses, "stages": stages}


def training_line(ledger: Ledger, checkpoint_id: str) -> list[StateRow]:
    """States of a checkpoint (id or unique prefix) and of those it started from, itself first.

    Raises InputError for an artifact that is no checkpoint, or whose state the ledger does not have.
    """
    checkpoint_id = ledger.artifact(checkpoint_id, ArtifactKind.CHECKPOINT).artifact_id
    line = ledger.training_line(checkpoint_id)
    if not line or line[0].checkpoint_id != checkpoint_id:
        raise InputError(
            "ledger has no exposure state of this checkpoint", value=checkpoint_id, next_step="m4v ledger index"
        )
    return line


def summarise(ledger: Ledger, checkpoint_id: str) -> list[StageDraws]:
    """What each stage of the line drew, the checkpoint's own first; raises InputError as `training_line` does, and
    for a dataset that is not in the clip index."""
    line = training_line(ledger, checkpoint_id)
    plans = plans_of(ledger, [row.order_id for row in line if row.order_id is not None])
    return [_draws(row, None if row.order_id is None else plans[row.order_id]) for row in line]


def _draws(row: StateRow, plan: SamplingPlan | None) -> StageDraws:
    samples = 0 if plan is None else sum(drawn for _, drawn in plan.draws(row.cursor))
    available = 0 if plan is None else sum(stream.count for stream in plan.streams)
    return StageDraws(
        checkpoint_id=row.checkpoint_id,
        stage=row.stage,
        dataset_id=row.dataset_id,
        seed=row.seed,
        steps=row.cursor,
        samples=samples,
        distinct=0 if plan is None else plan.distinct(row.cursor),
        available=available,
        epochs=samples / available if available else 0.0,
    )


def clip_exposure(
    ledger: Ledger, checkpoint_id: str, selector: ClipSelector, *, with_steps: bool = False
) -> list[ClipVerdict]:
    """The verdict on each selected clip, with its uses by every stage of the line; `with_steps` lists the steps.

    Raises InputError as `training_line` and `Ledger.find_clips` do, and for a dataset that is not in the clip index.
    """
    line = training_line(ledger, checkpoint_id)
    clips = ledger.find_clips(selector)
    uses = ClipUses.within(ledger, [c.clip_id for c in clips], [r.dataset_id for r in line if r.dataset_id])
    uses.load_plans(line)
    return [_verdict(clip, line, uses, with_steps) for clip in clips]


def _verdict(clip: ClipFacts, line: Sequence[StateRow], uses: ClipUses, with_steps: bool) -> ClipVerdict:
    stages = tuple(_stage_uses(row, clip.clip_id, uses, with_steps) for row in line)
    verdict = None
    if stages[0].uses:
        verdict = Verdict.SAW
    elif any(stage.uses for stage in stages):
        verdict = Verdict.DESCENDS
    elif any(stage.held for stage in stages):
        verdict = Verdict.CONTAINS
    return ClipVerdict(clip=clip, verdict=verdict, stages=stages)


def _stage_uses(row: StateRow, clip_id: str, uses: ClipUses, with_steps: bool) -> StageUses:
    held = uses.holds(row.dataset_id, clip_id)
    steps = uses.steps(row, clip_id) if held else []
    return StageUses(
        checkpoint_id=row.checkpoint_id,
        stage=row.stage,
        dataset_id=row.dataset_id,
        held=held,
        uses=len(steps),
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
        steps=tuple(steps) if with_steps else None,
    )
