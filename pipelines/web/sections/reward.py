"""What the reward stage changed: the checkpoints before and after it on the same prompts and seeds."""

from __future__ import annotations

from dataclasses import dataclass

from eval.records import SCORES, ScoreSet, read_record
from pipelines.before_reward import AFTER, BEFORE
from pipelines.web.sections.generated import MetricRow, metric_rows
from pipelines.web.sections.inputs import ReportInputs


@dataclass(frozen=True)
class RewardChange:
    """`rows`: after the stage (`trained`) against before it (`untrained`); `prompts`: how many both have."""

    rows: tuple[MetricRow, ...]
    prompts: int
    comparable: bool


def gather(inputs: ReportInputs) -> RewardChange | None:
    """None of a run that did not sample the checkpoint before its reward stage."""
    before, after = (inputs.get(f"scores_{name}") for name in (BEFORE, AFTER))
    if before is None or after is None:
        return None
    scores = read_record(ScoreSet, after, SCORES)
    earlier = read_record(ScoreSet, before, SCORES)
    rows, comparable = metric_rows(scores, earlier)
    ours, theirs = ({video.prompt_index for video in each.per_video} for each in (scores, earlier))
    return RewardChange(tuple(rows), len(ours & theirs), comparable)
