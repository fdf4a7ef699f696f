"""Runs, artifacts and their lineage, as rows: what fifty versions with their ladders leave in a ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from m4v.core.canonical import digest_json
from pipelines.ledger.numbers import Key
from tests.benchmarks.ledger.sizes import LADDER, SEEDS, SOURCES, VERSIONS, Sizes, identity
from training.config import OrderConfig

Row = dict[str, Any]
Ports = dict[str, tuple[str, str]]  # name -> (artifact id, kind)
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_PROMPTS = ("fast", "full", "human")


@dataclass
class History:
    """Rows by table. Every stage run has a pipeline run of its own, which took its input from another's."""

    sizes: Sizes
    rows: dict[str, list[Row]] = field(default_factory=dict)
    checkpoints: list[tuple[str, Row]] = field(default_factory=list)  # with the exposure state
    stems: list[tuple[Key, Key]] = field(default_factory=list)  # checkpoint and product, as recording a run notes them
    _runs: int = 0
    _last: str = ""

    def add(self, table: str, **values: Any) -> None:
        self.rows.setdefault(table, []).append(values)

    def artifact(self, kind: str, *name: object, **summary: Any) -> tuple[str, str]:
        artifact_id = identity(kind, *name)
        self.add(
            "artifact", artifact_id=artifact_id, kind=kind, size_bytes=1 << 30, files=12, summary=summary,
            recorded_at=self._now(), uri=f"s3://m4v/artifacts/{kind}/{artifact_id[:2]}/{artifact_id}",
        )  # fmt: skip
        return artifact_id, kind

    def run(self, stage: str, config: Row, inputs: Ports, outputs: Ports) -> None:
        """A committed run with its attempt, ports and pipeline run."""
        self._runs += 1
        number, at = self._runs, self._now()
        run_id, attempt, pipeline = (f"{letter}{number:015d}" for letter in "rap")
        key, digest = identity("key", number), digest_json(config)
        took = at + timedelta(seconds=40)
        self.add(
            "pipeline_run", pipeline_run_id=pipeline, recipe=f"recipe-{number % 12}", trigger="schedule", host="head",
            recipe_digest=identity(number % 12), resolved={"seed": 7, "recipe": number % 12, "stages": list(inputs)},
            process=f"head:{number}", started_at=at, status="succeeded", exit_class=0, message="", finished_at=took,
        )  # fmt: skip
        self.add(
            "attempt", attempt_id=attempt, stage_key=key, stage=stage, number=1, fence=1, launcher="slurm", host="head",
            work_dir=f"work/{key[:32]}/{attempt}", log_path=f"work/{key[:32]}/{attempt}/log.txt",
            pipeline_run_id=pipeline, node_id=stage, started_at=at, pid=None, job=f"m4v-{key[:12]}-1",
            status="succeeded", exit_class=0, message="", metrics={}, finished_at=took, run_id=run_id, progress=None,
            heartbeat_at=took,
        )  # fmt: skip
        self.add(
            "stage_run", run_id=run_id, stage_key=key, generation=1, stage=stage, stage_version=1,
            key_record={"stage": stage, "inputs": {n: i for n, (i, _) in inputs.items()}, "config": digest},
            config=config, config_digest=digest, code_digest=identity("code", number // 5000),
            environment={"python": "3.12", "torch": "2.11", "launcher": "slurm"}, seed="7", exactness="bit-exact",
            metrics={"seconds": 40.0}, attempt_id=attempt, committed_at=took,
        )  # fmt: skip
        for table, ports in (("run_input", inputs), ("run_output", outputs)):
            for name, (artifact_id, kind) in ports.items():
                self.add(table, run_id=run_id, name=name, artifact_id=artifact_id, kind=kind)
        node = {"pipeline_run_id": pipeline, "stage": stage, "reason": "", "recorded_at": took}
        self.add(
            "pipeline_run_node", **node, node_id=stage, stage_key=key, run_id=run_id, attempt_id=attempt, how="ran"
        )
        if self._last:
            hit = {**node, "node_id": "before", "reason": "all inputs, config and code are the same"}
            self.add("pipeline_run_node", **hit, stage_key=None, run_id=self._last, attempt_id=None, how="hit")
            self.add(
                "reuse", reuse_id=f"u{number:015d}", pipeline_run_id=pipeline, node_id="before", run_id=self._last,
                reason=hit["reason"], recorded_at=took,
            )  # fmt: skip
        self._last = run_id

    def _now(self) -> datetime:
        return _BEGAN + timedelta(seconds=60 * self._runs)

    @property
    def runs(self) -> int:
        return self._runs


def orders() -> dict[str, OrderConfig]:
    """Sampler config of each stage."""
    return {name: OrderConfig(frames=frames, min_frames=min(frames, 9), packs=64) for name, frames, _ in LADDER}


def write_history(sizes: Sizes) -> History:
    """Versions, the ladders trained on each, then evaluations of the checkpoints until there are enough runs."""
    history = History(sizes)
    source = {f"source.{n}": history.artifact("source", name, name=name) for n, name in enumerate(SOURCES)}
    for port in source:
        history.run("source", {"name": port}, {}, {port: source[port]})
    init = history.artifact("checkpoint", "init", stage="init", step=0)
    history.run("init", {"width": 1920}, {}, {"checkpoint": init})
    history.checkpoints.append((init[0], _state("init", None, None, 7, 0, None)))
    before: Ports = {}
    trained: list[tuple[str, str]] = []
    for version in range(VERSIONS):
        clips = history.artifact("clips", version, clips=sizes.batch)
        history.run("curate", {"version": version}, source, {"clips": clips})
        dataset = history.artifact("dataset", version, samples=(version + 1) * sizes.batch)
        history.run("encode", {"version": version}, {"clips": clips, **before}, {"dataset": dataset})
        before = {"dataset": dataset}
        for ladder in range(sizes.ladders):
            trained += _ladder(history, version, ladder, dataset, init)
    _channels(history, trained)
    for number, checkpoint in _endless(trained):
        if history.runs + 3 > sizes.runs:
            return history
        _evaluate(history, number, checkpoint)
    return history


def _ladder(
    history: History, version: int, ladder: int, dataset: tuple[str, str], init: tuple[str, str]
) -> list[tuple[str, str]]:
    start, made = init, []
    seed = SEEDS[ladder % len(SEEDS)]
    for stage, _, _ in LADDER:
        steps = history.sizes.steps(stage)
        config = {"name": stage, "steps": steps, "lr": 1e-5 * (1 + ladder), "order": orders()[stage].canonical()}
        checkpoint = history.artifact("checkpoint", version, ladder, stage, stage=stage, step=steps)
        inputs = {"dataset": dataset, "checkpoint": start}
        history.run("reward" if stage == "reward" else "train", config, inputs, {"checkpoint": checkpoint})
        state = _state(stage, dataset[0], config["order"], seed, steps, start[0])
        history.checkpoints.append((checkpoint[0], state))
        made.append(checkpoint)
        start = checkpoint
    return made


def _state(stage: str, dataset: str | None, order: object, seed: int, cursor: int, init_from: str | None) -> Row:
    return {
        "stage": stage, "dataset_id": dataset, "order": order, "seed": seed, "cursor": cursor, "init_from": init_from
    }  # fmt: skip


def _evaluate(history: History, number: int, checkpoint: tuple[str, str]) -> None:
    """One set of prompts: samples, their scores, and the gate on them."""
    prompts = _PROMPTS[number % len(_PROMPTS)]
    samples = history.artifact("samples", number, videos=50)
    history.run("generate", {"prompts": prompts}, {"checkpoint": checkpoint}, {"samples": samples})
    scores = history.artifact("scores", number, **{"vbench.total": 0.8})
    history.run("evaluate", {"prompts": prompts}, {"samples": samples}, {"scores": scores})
    gate = history.artifact("scores", number, "gate", passed=True)
    history.run("gate", {"rules": 4}, {"scores": scores, "baseline": scores}, {"scores": gate})
    history.stems += [(checkpoint, made) for made in (samples, scores, gate)]


def _channels(history: History, trained: list[tuple[str, str]]) -> None:
    """Every ladder's last checkpoint was promoted in its turn."""
    for seq, (artifact_id, kind) in enumerate(trained[len(LADDER) - 1 :: len(LADDER)], start=1):
        history.add(
            "channel", name=f"channel-{seq % 4}", seq=seq, artifact_id=artifact_id, kind=kind, moved_by="ops",
            reason="gates passed", moved_at=_BEGAN + timedelta(seconds=60 * seq),
        )  # fmt: skip


def _endless(items: list[tuple[str, str]]) -> Iterator[tuple[int, tuple[str, str]]]:
    number = 0
    while True:
        yield number, items[number % len(items)]
        number += 1
