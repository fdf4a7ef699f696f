"""A home with a made-up reward stage between two evaluated checkpoints; the metrics of its steps are real files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from evaluated_home import BAD, GOOD, EvaluatedHome, score_set

from eval.records import MetricScore, ScoreSet
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from pipelines.store import ArtifactRecord
from training.config import RewardConfig, RewardTermConfig, WeightedScorer
from training.reward.watch_config import WatchConfig

STEPS, EVERY = 12, 4
CONFIG = RewardConfig(
    name="reward", steps=STEPS, save_every=EVERY, reward=RewardTermConfig(scorers=(WeightedScorer(),)),
    watch=WatchConfig(data_loss=0.1, on_alarm="ignore"),
)  # fmt: skip
BEFORE = [0.40, 0.50, 0.60, 0.50, 0.40, 0.60]
CONSE, MOTION = "conse.alignment", "local.motion"


def steps(drift: float = 0.0) -> list[dict[str, float]]:
    """Rows of the metrics: the reward rises, and the data loss by `drift` of itself in the end."""
    return [
        {
            "step": step, "loss": 0.5 * (1 + drift * step / STEPS) + 0.001 * (step % 2), "reward": 0.1 + 0.01 * step,
            "score_conse": 0.1 + 0.01 * step, "frame_saturation": 0.3 + 0.001 * (step % 2),
            **(probed(step) if step % EVERY == EVERY - 1 else {}),
        }
        for step in range(STEPS)
    ]  # fmt: skip


def probed(step: int) -> dict[str, float]:
    """What a save's row tells of the model itself: its drift, and the score of clips that the stage never saw."""
    drift = {"velocity_drift": 0.01 * step, "velocity_drift_error": 0.001}
    parts = {"": 0.1 + 0.002 * step, "_at_start": 0.1, "_rise_low": 0.001 * step, "_rise_high": 0.003 * step}
    return {**drift, "probe_clips": 7, **{f"probe_score_conse{part}": value for part, value in parts.items()}}


def scored(checkpoint: str, values: Sequence[float]) -> ScoreSet:
    """`values` of the reward's own metric, of one that falls as it rises and of one without a better direction."""
    found = score_set(checkpoint, values, 8)
    made: MetricScore = found.metrics[GOOD]
    fall = made.model_copy(
        update={"values": tuple(1 - v for v in values), "mean": float(np.mean([1 - v for v in values]))}
    )
    metrics = {CONSE: made, GOOD: fall, MOTION: made.model_copy(update={"higher_is_better": None})}
    per_video = tuple(
        video.model_copy(update={"metrics": {CONSE: v, GOOD: 1 - v, MOTION: v}})
        for video, v in zip(found.per_video, values, strict=True)
    )
    identity = found.identity.model_copy(update={"metrics": dict.fromkeys(metrics, 1)})
    assert BAD not in metrics
    return found.model_copy(update={"identity": identity, "metrics": metrics, "per_video": per_video})


class RewardedHome(EvaluatedHome):
    def checkpoint(self, files: Mapping[str, str]) -> ArtifactRecord:
        self.count += 1
        folder = self.root / f"artifact{self.count}"
        folder.mkdir()
        for name, text in {**files, "number": str(self.count)}.items():
            (folder / name).write_text(text)
        manifest = build_manifest(folder, ArtifactKind.CHECKPOINT, {})
        write_manifest(folder, manifest)
        return ArtifactRecord(
            artifact_id=manifest.artifact_id, kind=ArtifactKind.CHECKPOINT, uri=str(folder),
            size_bytes=manifest.size_bytes, files=len(manifest.files), summary={},
        )  # fmt: skip

    def rewarded(self, gain: float | None = 0.1, drift: float = 0.0, config: RewardConfig = CONFIG) -> str:
        """A reward stage whose checkpoint scores `gain` more (None: only that one was evaluated); its run id."""
        before = self.checkpoint({})
        self.run("train", "checkpoint", before, {}, name="57f")
        rows = "".join(json.dumps(row) + "\n" for row in steps(drift))
        after = self.checkpoint({"metrics.jsonl": rows})
        run = self.run("reward", "checkpoint", after, {"checkpoint": before}, **config.canonical())
        sides = ((before, BEFORE if gain is not None else None), (after, [v + (gain or 0.0) for v in BEFORE]))
        for checkpoint, values in sides:
            if values is not None:
                self.measured(checkpoint, values)
        return run

    def measured(self, checkpoint: ArtifactRecord, values: Sequence[float]) -> None:
        samples = self.record(ArtifactKind.SAMPLES, {})
        self.run("generate", "samples", samples, {"checkpoint": checkpoint})
        scores = self.record(ArtifactKind.SCORES, {}, scored(checkpoint.artifact_id, values))
        self.run("evaluate", "scores", scores, {"samples": samples})
