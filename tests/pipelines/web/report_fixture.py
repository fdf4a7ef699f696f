"""Artifacts of a whole small run, in the layouts that the stages write, for the report's tests.

Samples are real videos scored by the real stages; curves and tables are made up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.sources.config import SyntheticConfig
from dataprep.sources.synthetic import captions_of, render, scene_of
from eval.config import EvaluateConfig, GateConfig
from eval.prompts import SEED_RULE, prompt_set_digest, video_name, video_seed
from eval.records import SAMPLES, SampleSet, SampleVideo, write_record
from eval.stages import evaluate, gate
from eval.vocabulary import parse_facts
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_file
from m4v.core.config import parse
from m4v.core.stage import InputRef, OutputRef, StageContext, StageRequest
from m4v.video_io import write_mp4
from training.config import RewardConfig

HOSTILE = "<script>alert('x')</script> & \"quotes\""
LADDER = ("t2i", "57f", "121f", "241f", "reward")
HEIGHT, WIDTH, FRAMES, FPS = 64, 96, 17, 8.0


class RunFixture:
    """All artifacts of one run below `root`, and a context for the report stage over them."""

    def __init__(self, root: Path, *, passed: bool = True, prompts: int = 6) -> None:
        self.root = root
        self.artifacts: dict[str, Artifact] = {}
        self._sources()
        self._clips()
        self._dataset()
        for number, name in enumerate(LADDER):
            self._checkpoint(name, number)
        self._evaluation(prompts, passed)
        (root / "facts.json").write_text(json.dumps(self.facts()))

    def context(
        self, config: dict[str, Any] | None = None, only: tuple[str, ...] | None = None, facts: bool = True
    ) -> StageContext:
        """`only`: input names that the report gets; default all."""
        chosen = {n: a for n, a in self.artifacts.items() if only is None or n in only}
        attachments = {"facts": str(self.root / "facts.json")} if facts else {}
        return self._context("report", config or {}, chosen, "report", ArtifactKind.REPORT, attachments)

    def _context(
        self,
        stage: str,
        config: dict[str, Any],
        inputs: dict[str, Artifact],
        output: str,
        kind: ArtifactKind,
        attachments: dict[str, str] | None = None,
    ) -> StageContext:
        work = self.root / "work" / f"{stage}-{len(list((self.root).glob('work/*')))}"
        work.mkdir(parents=True)
        refs = tuple(InputRef(name=n, kind=a.kind, artifact_id=a.id, uri=a.storage.uri) for n, a in inputs.items())
        return StageContext(
            StageRequest(
                stage=stage,
                stage_version=1,
                function="unused:unused",
                config_model="unused:Unused",
                stage_key="0" * 64,
                attempt_id=work.name,
                config=config,
                seed=0,
                inputs=refs,
                outputs=(OutputRef(name=output, kind=kind),),
                store_uri=str(self.root),
                work_dir=str(work),
                state_uri=str(work / "state"),
                items_uri=str(self.root / "items"),
                attachments=attachments or {},
            )
        )

    def _publish(self, name: str, directory: Path, kind: ArtifactKind) -> None:
        manifest = build_manifest(directory, kind, {})
        write_manifest(directory, manifest)
        self.artifacts[name] = Artifact(str(directory), manifest.artifact_id, kind, self.root / "cache")

    def _folder(self, name: str) -> Path:
        folder = self.root / "artifacts" / name
        folder.mkdir(parents=True)
        return folder

    def _sources(self) -> None:
        rows = [
            (
                "film",
                "folder",
                "CC-BY-3.0",
                "Big Buck Bunny, (c) 2008 Blender Foundation",
                2,
                [("bad.mp4", None, "empty", "0 bytes")],
            ),
            ("shapes", "synthetic", "CC0-1.0", "", 24, []),
            ("hostile", "openvid", HOSTILE, HOSTILE, 1, [("data.csv", 7, "bad_row", "seconds is 'abc'")]),
        ]
        for number, (name, kind, licence, terms, files, rejected) in enumerate(rows):
            folder = self._folder(f"source-{name}")
            write_table(folder / "listing.parquet", [{"path": f"{name}-{i}.mp4"} for i in range(files)])
            columns = ("path", "row", "reason", "detail")
            write_table(folder / "rejected.parquet", [dict(zip(columns, r, strict=True)) for r in rejected])
            facts = {"name": name, "kind": kind, "licence": licence, "terms": terms, "media": "external", "counts": {}}
            (folder / "source.json").write_text(json.dumps(facts))
            self._publish(f"source.{number}", folder, ArtifactKind.SOURCE)

    def _clips(self) -> None:
        folder = self._folder("clips")
        (folder / "previews").mkdir()
        config = SyntheticConfig.model_validate({"count": 30, "frames": 9, "size": (HEIGHT, WIDTH)})
        rules = [None] * 18 + ["motion_min"] * 5 + ["duplicate"] * 3 + ["text_area_max"] * 2 + ["black"] * 2
        rows = []
        for i, rule in enumerate(rules):
            scene = scene_of(config, i, still=False)
            frames = render(scene, 9, HEIGHT, WIDTH)
            strip = np.concatenate([frames[t] for t in (0, 3, 5, 8)], axis=1)
            clip_id = f"{i:032x}"
            cv2.imwrite(str(folder / f"previews/{clip_id}.jpg"), strip[..., ::-1])
            rows.append(
                {
                    "clip_id": clip_id,
                    "source": "shapes",
                    "source_id": str(i),
                    "path": f"media/clip-{i:06d}.mp4",
                    "media": "video",
                    "start_us": 0,
                    "end_us": 1_125_000,
                    "frames": 9,
                    "fps": FPS,
                    "width": WIDTH,
                    "height": HEIGHT,
                    "captions": [HOSTILE] if i == 18 else captions_of(scene, 2),
                    "kept": rule is None,
                    "drop_rule": rule,
                    "duplicate_of": f"{0:032x}" if rule == "duplicate" else None,
                    "licence": "CC0-1.0",
                }
            )
        write_table(folder / "clips.parquet", rows)
        funnel = [
            {"step": "files", "unit": "files", "in": 27, "out": 25, "dropped_by_reason": {"empty": 1, "not_media": 1}},
            {"step": "shots", "unit": "clips", "in": 30, "out": 30, "dropped_by_reason": {}},
            {
                "step": "filters",
                "unit": "clips",
                "in": 30,
                "out": 21,
                "dropped_by_reason": {"motion_min": 5, "text_area_max": 2, "black": 2},
            },
            {"step": "duplicates", "unit": "clips", "in": 21, "out": 18, "dropped_by_reason": {"duplicate": 3}},
        ]
        (folder / "funnel.json").write_text(json.dumps(funnel))
        write_table(
            folder / "quarantine.parquet",
            [
                dict(zip(("source", "source_id", "path", "reason", "detail", "step"), row, strict=True))
                for row in (
                    ("film", "x", f"{HOSTILE}.mp4", "not_media", HOSTILE, "probe"),
                    ("film", "y", "cut.mp4", "truncated", "3 of 90 frames", "decode"),
                    ("film", "", "bad.mp4", "empty", "0 bytes", "source"),
                    ("hostile", "", "data.csv", "bad_row", "row 7: seconds is 'abc'", "source"),
                )
            ],
        )
        self._publish("clips", folder, ArtifactKind.CLIPS)

    def _dataset(self) -> None:
        folder = self._folder("dataset")
        config = SyntheticConfig.model_validate({"count": 8, "frames": FRAMES, "size": (HEIGHT, WIDTH)})
        rows = []
        for i in range(8):
            scene = scene_of(config, i, still=False)
            source = render(scene, FRAMES, HEIGHT, WIDTH)
            soft = cv2.GaussianBlur(source.reshape(-1, WIDTH, 3), (0, 0), 1.2).reshape(source.shape)
            name = f"reconstructions/{i:032x}.mp4"
            write_mp4(folder / name, np.concatenate([source, soft], axis=2), FPS)
            rows.append(
                {
                    "clip_id": f"{i:032x}",
                    "file": name,
                    "source": "shapes",
                    "media": "video",
                    "caption": captions_of(scene, 1)[0],
                    "frames": FRAMES,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "fps": FPS,
                    "psnr_db": 28.0 + i,
                    "first_frame_psnr_db": 30.0,
                }
            )
        (folder / "reconstructions.json").write_text(
            json.dumps({"layout": "source left, reconstruction right", "clips": rows})
        )
        index = [{"bucket_t": t, "bucket_h": 8, "bucket_w": 12} for t in (1, 1, 3, 3, 3)]
        write_table(folder / "index.parquet", index)
        self._publish("dataset", folder, ArtifactKind.DATASET)

    def _checkpoint(self, name: str, number: int) -> None:
        folder = self._folder(f"checkpoint-{name}")
        rng = np.random.default_rng(number)
        lines = []
        for step in range(60):
            row = {
                "step": step,
                "loss": 1.1 * np.exp(-step / 25) + 0.35 + rng.normal(0, 0.06),
                "grad_norm": 0.5 + rng.random(),
                "lr": 1e-4,
                "tokens": 4096,
                "media": "image" if step % 9 == 8 else "video",
            }
            lines.append(json.dumps(row | ({"conse": 0.1 + step / 600} if name == "reward" else {})))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "config.json").write_text("{}")
        (folder / "training.json").write_text(json.dumps({"stage": name, "seed": 0, "cursor": 60}))
        self._publish(f"checkpoint.{name}", folder, ArtifactKind.CHECKPOINT)

    def _evaluation(self, prompts: int, passed: bool) -> None:
        config = SyntheticConfig.model_validate(
            {"count": prompts, "frames": FRAMES, "size": (HEIGHT, WIDTH), "seed": 3}
        )
        scenes = [scene_of(config, i, still=False) for i in range(prompts)]
        texts = [captions_of(s, 1)[0] for s in scenes[:-1]] + [f"a rabbit {HOSTILE}"]
        rng = np.random.default_rng(1)
        for suffix in ("", "_untrained"):
            clips = []
            for scene in scenes:
                frames = render(scene, FRAMES, HEIGHT, WIDTH).astype(float)
                noise = rng.normal(0, 1, frames.shape)
                clips.append(np.clip(frames + 14 * noise if not suffix else 128 + 50 * noise, 0, 255).astype(np.uint8))
            samples = self._samples(suffix, texts, clips)
            metrics = [m for m in EvaluateConfig().metrics if m.startswith("local.")]
            context = self._context(
                "evaluate", {"metrics": metrics}, {"samples": samples}, "scores", ArtifactKind.SCORES
            )
            evaluate.run(context)
            self._publish(f"scores{suffix}", context.output("scores"), ArtifactKind.SCORES)
        rules = [
            {"rule": "better_than_baseline", "metric": "local.colour_follow", "by": 0.1 if passed else 0.9},
            {"rule": "minimum", "metric": "local.flicker", "value": 0.5},
        ]
        settings = parse(GateConfig, {"rules": rules}, "fixture").canonical()
        inputs = {"scores": self.artifacts["scores"], "baseline": self.artifacts["scores_untrained"]}
        context = self._context("gate", settings, inputs, "scores", ArtifactKind.SCORES)
        gate.run(context)
        self._publish("gate", context.output("scores"), ArtifactKind.SCORES)

    def _samples(self, suffix: str, texts: list[str], clips: list[np.ndarray]) -> Artifact:
        folder = self._folder(f"samples{suffix}")
        videos = []
        for i, (text, frames) in enumerate(zip(texts, clips, strict=True)):
            file = video_name(i, 0)
            write_mp4(folder / file, frames, FPS)
            videos.append(
                SampleVideo(
                    file=file,
                    prompt=text,
                    prompt_index=i,
                    sample_index=0,
                    seed=video_seed(0, i, 0),
                    facts=parse_facts(text),
                    frames=FRAMES,
                    fps=FPS,
                    height=HEIGHT,
                    width=WIDTH,
                    sha256=digest_file(folder / file),
                )
            )
        record = SampleSet(
            checkpoint=("b" if suffix else "a") * 64,
            ema=True,
            sampler={},
            codec={},
            text_encoder={},
            crf=12,
            prompt_set=prompt_set_digest(texts),
            seed_rule=SEED_RULE,
            base_seed=0,
            prompts=len(texts),
            samples_per_prompt=1,
            videos=tuple(videos),
        )
        write_record(folder / SAMPLES, record)
        self._publish(f"samples{suffix}", folder, ArtifactKind.SAMPLES)
        return self.artifacts[f"samples{suffix}"]

    def facts(self) -> dict[str, Any]:
        """As `pipelines.facts.collect_facts` writes them."""
        stages = [
            ("source.film", "source", []),
            ("source.shapes", "source", []),
            ("source.hostile", "source", []),
            ("curate", "curate", ["source.film", "source.shapes", "source.hostile"]),
            ("encode", "encode", ["curate", "source.film", "source.shapes", "source.hostile"]),
            ("init", "init", []),
            *[
                (f"train.{n}", "train", ["encode", f"train.{p}" if p else "init"])
                for p, n in zip((None, *LADDER[:3]), LADDER[:4], strict=True)
            ],
            ("reward", "reward", ["encode", "train.241f"]),
            ("generate.trained", "generate", ["reward"]),
            ("generate.untrained", "generate", ["init"]),
            ("evaluate.trained", "evaluate", ["generate.trained"]),
            ("evaluate.untrained", "evaluate", ["generate.untrained"]),
            ("gate", "gate", ["evaluate.trained", "evaluate.untrained"]),
        ]
        nodes, edges = [], []
        for number, (node, stage, above) in enumerate(stages):
            hit = number < 4
            nodes.append(
                {
                    "node_id": node,
                    "stage": stage,
                    "config": {},
                    "seed": 0,
                    "ranks": 2 if stage == "train" else 1,
                    "status": "hit" if hit else "ran",
                    "reason": "same key, outputs verified" if hit else "config changed: steps 3 -> 60",
                    "seconds": 0.1 if hit else 3.0 * number,
                    "work_seconds": 3.0 * number + 1,
                    "run_id": f"run-{number:04d}",
                    "stage_key": f"{number:064x}",
                    "attempt_id": f"a{number}",
                    "attempt_number": 2 if node == "encode" else 1,
                    "metrics": {"items": 30, "rate": 1.2345678},
                    "environment": {},
                    "error": None,
                    "exit_class": 0,
                    "log_path": None,
                    "outputs": {
                        "out": {
                            "artifact_id": f"{number + 7:064x}",
                            "uri": "/x",
                            "kind": "clips",
                            "size_bytes": 123456 * number,
                        }
                    },
                }
            )
            edges += [
                {"from": a, "to": node, "input": f"in.{i}", "artifact_id": "f" * 64, "kind": "clips"}
                for i, a in enumerate(above)
            ]
        nodes.append({"node_id": "report", "stage": "report", "config": {}, "seed": 0, "ranks": 1, "status": "pending"})
        edges += [{"from": s[0], "to": "report", "input": s[0], "artifact_id": None, "kind": None} for s in stages]
        # These need configs that their models take; the others' weights are not asked for.
        for node in nodes:
            if node["stage"] == "evaluate":
                node["config"] = EvaluateConfig().canonical()
            elif node["stage"] in ("curate", "encode", "reward"):
                node["stage"] = f"fixture-{node['stage']}"
            if node["node_id"] == "reward":
                node["config"] = RewardConfig(name="reward", steps=60, save_every=20).canonical()
        return {
            "schema_version": 1,
            "recipe": "demo",
            "resolved": {"name": "demo", "seed": 0, "description": HOSTILE},
            "pipeline_run_id": "pr-0001",
            "started_at": "2026-11-21T12:00:00Z",
            "host": {"cpus": 2, "platform": "Linux"},
            "nodes": nodes,
            "edges": edges,
        }


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows) if rows else pa.table({"path": pa.array([], pa.string())})
    pq.write_table(table, path)
