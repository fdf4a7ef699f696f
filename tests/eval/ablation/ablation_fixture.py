"""Checkpoints and scores of a few variants as the stages leave them, and the stage `ablation` over them.

The checkpoints hold no weights: a table reads their configs, their exposure and their losses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from eval_support import publish, stage_context

from eval.ablation.config import AblationStageConfig
from eval.ablation.records import ABLATION, AblationTable
from eval.records import SCORES, Identity, MetricScore, ScoreSet, VideoScore, read_record, write_record
from eval.stages import ablation
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import Artifact, ArtifactKind

GOOD, NOISE, MONITOR = "local.good", "local.noise", "local.monitor"
SMALL = {"width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 4, "text_dim": 8, "pooled_dim": 8,
         "text_slots": 4, "mlp_ratio": 1, "temporal_branch": False}  # fmt: skip
STEPS = 20


class Variants:
    """Artifacts by variant and port. `values[variant]`: one score a prompt; `models`: changes to the small model."""

    def __init__(
        self, root: Path, values: Mapping[str, Sequence[float]], models: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.root, self.count = root, 0
        self.inputs: dict[str, Artifact] = {}
        shared = self._checkpoint({}, {"stage": "attention", "init_from": None}, [])
        self.shared = shared.id
        for number, (name, scores) in enumerate(values.items()):
            start = self._checkpoint(models.get(name, {}), {"stage": "convert", "init_from": shared.id}, [])
            losses = [1.0 - 0.01 * step - 0.1 * number for step in range(STEPS)]
            trained = self._checkpoint(models.get(name, {}), self.training(start.id), losses)
            self.inputs |= {f"start.{name}": start, f"trained.{name}": trained, f"checkpoint.{name}": trained}
            self.score(name, scores, trained.id)

    def training(self, start: str, **changes: Any) -> dict[str, Any]:
        state = {"stage": "adapt", "dataset_id": "d" * 64, "order": {"frames": 17}, "seed": 7, "global_batch": [2],
                 "cursor": STEPS, "init_from": start}  # fmt: skip
        return state | changes

    def score(self, name: str, values: Sequence[float], checkpoint: str, fps: float = 8.0) -> None:
        folder = self._folder()
        write_record(folder / SCORES, score_set(values, checkpoint, fps))
        self.inputs[f"scores.{name}"] = publish(folder, ArtifactKind.SCORES)

    def trained_on(self, name: str, **changes: Any) -> None:
        """Give a variant a training of another kind."""
        start = self.inputs[f"start.{name}"].id
        made = self._checkpoint({}, self.training(start, **changes), [0.5] * STEPS)
        self.inputs |= {f"trained.{name}": made, f"checkpoint.{name}": made}

    def table(self, config: Mapping[str, Any]) -> tuple[AblationTable, Artifact]:
        """What the stage makes of them, and its artifact."""
        parsed = AblationStageConfig.model_validate(
            {"name": "own", "start": "attention", "stages": ["adapt"], **config}
        )
        self.count += 1
        wanted = {n: a for n, a in self.inputs.items() if n.partition(".")[2] in parsed.variants}
        context = stage_context(
            self.root, "ablation", parsed, wanted, "scores", ArtifactKind.SCORES, seed=7, attempt=str(self.count)
        )
        ablation.run(context)
        folder = context.output("scores")
        artifact = publish(folder, ArtifactKind.SCORES)
        return read_record(AblationTable, artifact, ABLATION), artifact

    def _folder(self) -> Path:
        self.count += 1
        folder = self.root / f"artifact{self.count}"
        folder.mkdir()
        return folder

    def _checkpoint(self, model: Mapping[str, Any], training: Mapping[str, Any], losses: Sequence[float]) -> Artifact:
        folder = self._folder()
        config = CheckpointConfig(model=ModelConfig.model_validate({**SMALL, **model}), schedule=ScheduleConfig())
        (folder / "config.json").write_text(json.dumps(config.canonical()))
        (folder / "training.json").write_text(json.dumps(training))
        rows = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses)]
        (folder / "metrics.jsonl").write_text("".join(rows))
        return publish(folder, ArtifactKind.CHECKPOINT)


def score_set(values: Sequence[float], checkpoint: str, fps: float = 8.0) -> ScoreSet:
    """A metric that should rise, its complement that should fall, and a monitor."""
    identity = Identity(
        checkpoint=checkpoint, ema=True, sampler={}, codec={}, text_encoder={}, video_codec="h264", prompt_set="p",
        seed_rule="s", base_seed=0, samples_per_prompt=1, frames=9, fps=fps, height=64, width=64,
        metrics={GOOD: 1, NOISE: 1, MONITOR: 1}, metric_config={},
    )  # fmt: skip
    videos = tuple(
        VideoScore(
            file=f"{n}.mp4", prompt=str(n), prompt_index=n, sample_index=0, details={},
            metrics={GOOD: value, NOISE: 1 - value, MONITOR: value},
        )
        for n, value in enumerate(values)
    )  # fmt: skip

    def metric(name: str, better: bool | None) -> MetricScore:
        found = [video.metrics[name] for video in videos]
        return MetricScore(
            version=1, title=name.partition(".")[2].capitalize(), unit="", description=f"{name} of a clip",
            higher_is_better=better, chance=None, mean=float(np.mean([v for v in found if v is not None])),
            count=len(found), values=tuple(found),
        )  # fmt: skip

    metrics = {GOOD: metric(GOOD, True), NOISE: metric(NOISE, False), MONITOR: metric(MONITOR, None)}
    return ScoreSet(identity=identity, metrics=metrics, per_video=videos)
