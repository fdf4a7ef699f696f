"""What a reward stage did: the checkpoints before and after it on the same prompts and seeds, and its watch. No HTML.

found = reward_effect(ledger, cache, reward_run(ledger, "3f2a"))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from eval.config import score_name
from eval.pairing import BOOTSTRAP_SEED, MIN_PROMPTS, paired_comparison
from eval.records import ScoreSet
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError
from m4v.scores.config import ConseConfig
from pipelines.inspection.leaderboard import SCORING, protocol_of, read_scores
from pipelines.inspection.scored import CONFIDENCE, RESAMPLES, Change
from pipelines.inspection.side_by_side import SideBySide, side_by_side
from pipelines.ledger import ArtifactRow, Ledger, NodeRow, PipelineRunRow, RunRow
from training.config import RewardConfig
from training.reward.held_out import HeldOutScore, held_out_scores
from training.reward.watch import Alarm, Verdict, Watch

STAGE = "reward"
REWARD, HELD_OUT = "reward", "held out"  # roles of a metric
NEWEST = 50
METRICS = "metrics.jsonl"
Row = dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """A reward stage that made a checkpoint."""

    run_id: str
    made_at: datetime
    before: str
    after: str
    alarm: bool


@dataclass(frozen=True)
class Finding:
    """One sentence about the comparison; `good` is None where nothing speaks for or against the stage."""

    good: bool | None
    words: str


@dataclass(frozen=True)
class RewardEffect:
    """A reward stage, judged.

    - pair: scores of both sides where one protocol has both, the checkpoint before on the left; None: none yet.
    - other_pairs: further scores of both (before, after), of other protocols.
    - roles: metrics that are the reward's, and those held out of it; monitors: what changed of those without a better
      direction, after minus before, paired by prompt.
    - rows: metrics of the stage's steps; verdicts, alarm: what its watch says of them, `problem` why it cannot.
    - held_out: what the stage's own scorers say of clips that it did not train on, where it was asked.
    """

    run: RunRow
    before: str
    after: str
    pair: SideBySide | None
    other_pairs: tuple[tuple[str, str], ...]
    roles: Mapping[str, str]
    monitors: Mapping[str, Change]
    rows: Sequence[Row]
    verdicts: tuple[Verdict, ...]
    alarm: Alarm | None
    problem: str | None

    @property
    def held_out(self) -> tuple[HeldOutScore, ...]:
        return held_out_scores(self.rows)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(_findings(self))


def listed(ledger: Ledger, newest: int = NEWEST) -> list[Listed]:
    """Reward stages, newest first."""
    return [
        Listed(run.run_id, run.committed_at, *_checkpoints(run), alarm="watch_alarm" in run.metrics)
        for run in ledger.runs(stage=STAGE, limit=newest)
    ]


def reward_run(ledger: Ledger, given: str | None = None) -> RunRow:
    """The reward stage of a run, a pipeline run or a checkpoint that it made, by id or beginning; without one the
    newest. Raises InputError when there is none."""
    step = "m4v evaluate reward --list"
    if given is None:
        newest = ledger.runs(stage=STAGE, limit=1)
        if not newest:
            raise InputError("no reward stage has made a checkpoint yet", next_step="m4v run RECIPE with `reward`")
        return newest[0]
    row = ledger.resolve(given)
    found: list[RunRow] = []
    if isinstance(row, RunRow):
        found = [row]
    elif isinstance(row, ArtifactRow):
        found = ledger.producers(row.artifact_id)
    elif isinstance(row, PipelineRunRow):
        nodes: list[NodeRow] = ledger.nodes(row.pipeline_run_id)
        found = [ledger.run(n.run_id) for n in nodes if n.run_id is not None and n.node_id == STAGE]
    for run in reversed(found):
        if run.stage == STAGE:
            return run
    raise InputError("this is no reward stage, nor a checkpoint or pipeline run of one", value=given, next_step=step)


def reward_effect(ledger: Ledger, cache: Path, run: RunRow, *, first: int = 0, shown: int = 12) -> RewardEffect:
    """Raises DataIntegrityError when scores of both sides are damaged."""
    before, after = _checkpoints(run)
    config = RewardConfig.model_validate(run.config)
    pairs = _pairs(_scores_of(ledger, cache, before), _scores_of(ledger, cache, after))
    chosen = pairs[0] if pairs else None
    pair = None if chosen is None else side_by_side(ledger, cache, chosen[0][0], chosen[1][0], first=first, shown=shown)
    rows, problem = _rows(ledger.artifact(after, ArtifactKind.CHECKPOINT), cache)
    watch = Watch(config.watch, config.save_every, rows)
    return RewardEffect(
        run, before, after, pair, tuple((left[0], right[0]) for left, right in pairs[1:]), _roles(config),
        {} if chosen is None else _monitors(chosen[0][1], chosen[1][1]), rows, watch.verdicts(),
        watch.alarm or _alarm(run), problem,
    )  # fmt: skip


def _checkpoints(run: RunRow) -> tuple[str, str]:
    (before,) = (port.artifact_id for port in run.inputs if port.name == "checkpoint")
    return before, run.output("checkpoint").artifact_id


def _alarm(run: RunRow) -> Alarm | None:
    """The alarm that the stage was finished at: its rows end with the good save, before it."""
    told = run.metrics.get("watch_alarm")
    return Alarm(told["step"], told["good"], tuple(told["reasons"])) if isinstance(told, dict) else None


Scores = tuple[str, ScoreSet]


def _scores_of(ledger: Ledger, cache: Path, checkpoint: str) -> list[Scores]:
    """Scores of a checkpoint's samples whose bytes are there, newest first."""
    found: dict[str, ScoreSet] = {}
    sampled = [run for run in ledger.consumers(checkpoint) if run.stage == "generate"]
    samples = {port.artifact_id for run in sampled for port in run.outputs}
    scored = [run for identity in samples for run in ledger.consumers(identity) if run.stage in SCORING]
    for run in sorted(scored, key=lambda run: run.committed_at, reverse=True):
        row = ledger.artifact(run.output("scores").artifact_id, ArtifactKind.SCORES)
        if row.artifact_id not in found and Artifact(row.uri, row.artifact_id, row.kind, cache).storage.exists(
            MANIFEST
        ):
            found[row.artifact_id] = read_scores(row, cache)
    return list(found.items())


def _pairs(before: Sequence[Scores], after: Sequence[Scores]) -> list[tuple[Scores, Scores]]:
    """One of each protocol that both have; image-text scores first, then what has more metrics."""
    ours = {protocol_of(scores.identity): (identity, scores) for identity, scores in reversed(after)}
    found: dict[str, tuple[Scores, Scores]] = {}
    for identity, scores in before:
        protocol = protocol_of(scores.identity)
        if protocol in ours:
            found.setdefault(protocol, ((identity, scores), ours[protocol]))
    return sorted(found.values(), key=_weight, reverse=True)


def _weight(pair: tuple[Scores, Scores]) -> tuple[bool, int, int]:
    scores = pair[0][1]
    return scores.figures is None, len(scores.metrics), len(scores.per_video)


def _roles(config: RewardConfig) -> dict[str, str]:
    """Metrics of an evaluation that are scores of the reward, or held out of it."""
    groups = (
        (HELD_OUT, config.watch.held_out),
        (REWARD, tuple(weighted.scorer for weighted in config.reward.scorers)),
    )
    return {
        name: role
        for role, scorers in groups
        for scorer in scorers
        for name in (score_name(scorer), *(["conse.alignment"] if isinstance(scorer, ConseConfig) else []))
    }


def _monitors(before: ScoreSet, after: ScoreSet) -> dict[str, Change]:
    found = {}
    for name, metric in before.metrics.items():
        if metric.higher_is_better is not None or name not in after.metrics:
            continue
        # Without a better direction less counts as better there: turned round it is after minus before.
        pair = paired_comparison(
            before, after, name, resamples=RESAMPLES, confidence=CONFIDENCE, seed=BOOTSTRAP_SEED
        )  # fmt: skip
        if pair is not None and pair.prompts >= MIN_PROMPTS:
            found[name] = Change(pair.gain, pair.interval)
    return found


def _rows(row: ArtifactRow, cache: Path) -> tuple[list[Row], str | None]:
    """Metrics of the steps, or why they cannot be read."""
    artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
    if not artifact.storage.exists(MANIFEST):
        return [], "the checkpoint's bytes are no longer in the store"
    try:
        return [json.loads(line) for line in artifact.path(METRICS).read_text().splitlines()], None
    except (DataIntegrityError, InputError) as error:
        return [], error.what
    except ValueError:
        return [], f"{METRICS} does not parse"


def _findings(found: RewardEffect) -> Iterator[Finding]:
    if found.pair is None:
        yield Finding(None, "no evaluation of one protocol has both checkpoints; set evaluation.before_reward")
    elif found.pair.differences:
        yield Finding(None, f"the evaluations differ in {', '.join(found.pair.differences)}: nothing is subtracted")
    elif not any(row.change for row in found.pair.rows):
        yield Finding(None, f"fewer than {MIN_PROMPTS} common prompts: no intervals")
    for row in found.pair.rows if found.pair is not None else ():
        if (change := row.change) is None:
            continue
        name, role = row.metric.name, found.roles.get(row.metric.name)
        told = f"{name} {change.gain:+.4g} ({change.interval[0]:+.4g} to {change.interval[1]:+.4g})"
        if change.regression:
            yield Finding(False, f"{role + ': ' if role else ''}{told}: significantly worse")
        elif role == REWARD:
            rose = change.improvement
            yield Finding(rose or None, f"reward: {told}: {'significantly better' if rose else 'no significant gain'}")
        elif role == HELD_OUT:
            yield Finding(True, f"held out: {told}: did not fall significantly")
    for score in found.held_out:
        yield _finding(score)
    if found.problem is not None:
        yield Finding(None, f"the watch cannot be read: {found.problem}")
    elif found.alarm is not None:
        yield Finding(False, f"the watch raised an alarm at step {found.alarm.step}: {'; '.join(found.alarm.reasons)}")
    else:
        out = [verdict.name for verdict in found.verdicts if verdict.departed]
        words = f"; out of bounds at single saves: {', '.join(out)}" if out else ""
        yield Finding(True, f"the watch raised no alarm{words}")


def _finding(score: HeldOutScore) -> Finding:
    rose, words = None, "no significant change"
    if score.significant:
        rose = score.rise > 0
        words = "significantly better" if rose else "significantly worse"
    low, high = score.interval
    told = f"{score.name} {score.rise:+.4g} ({low:+.4g} to {high:+.4g}) over {score.clips} clips"
    return Finding(rose, f"held-out clips: {told}: {words}")
