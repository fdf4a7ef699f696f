"""What the reward stage changed: the scorers on clips that it did not train on, its watch, and the checkpoints before
and after it on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.records import SCORES, ScoreSet, read_record
from m4v.core.config import parse
from pipelines.before_reward import AFTER, BEFORE
from pipelines.web.facts import NodeFacts, RunFacts
from pipelines.web.sections.generated import MetricRow, metric_rows
from pipelines.web.sections.inputs import ReportInputs, Row
from pipelines.web.sections.training import read_metrics
from training.config import RewardConfig
from training.reward.held_out import HeldOutScore, held_out_scores
from training.reward.watch import Watch


@dataclass(frozen=True)
class RewardChange:
    """`rows`: after the stage (`trained`) against before it (`untrained`); `prompts`: how many both have. `held_out`:
    what the stage itself measured; `alarm`: its watch's, in words, None where `watched` is false or there was none."""

    rows: tuple[MetricRow, ...]
    prompts: int
    comparable: bool
    held_out: tuple[HeldOutScore, ...] = ()
    watched: bool = False
    alarm: str | None = None


def gather(inputs: ReportInputs, facts: RunFacts | None = None) -> RewardChange | None:
    """None of a run that neither scored held-out clips in its reward stage nor sampled the checkpoint before it."""
    trained = inputs.get("checkpoint.reward")
    steps = [] if trained is None else read_metrics(trained)
    held_out = held_out_scores(steps)
    node = None if facts is None else facts.node("reward")
    alarm = None if node is None else _alarm(node, steps)
    before, after = (inputs.get(f"scores_{name}") for name in (BEFORE, AFTER))
    if before is None or after is None:
        return RewardChange((), 0, True, held_out, node is not None, alarm) if held_out else None
    scores = read_record(ScoreSet, after, SCORES)
    earlier = read_record(ScoreSet, before, SCORES)
    rows, comparable = metric_rows(scores, earlier)
    ours, theirs = ({video.prompt_index for video in each.per_video} for each in (scores, earlier))
    return RewardChange(tuple(rows), len(ours & theirs), comparable, held_out, node is not None, alarm)


def _alarm(node: NodeFacts, steps: Sequence[Row]) -> str | None:
    """The first alarm of the stage's watch: of its rows, or the one that it was finished at, after them."""
    config = parse(RewardConfig, node.config, "reward")
    found = Watch(config.watch, config.save_every, steps).alarm
    if found is not None:
        return f"step {found.step}: {'; '.join(found.reasons)}"
    finished = node.metrics.get("watch_alarm")
    return f"step {finished['step']}" if isinstance(finished, dict) else None
