"""A whole pipeline of the Wan family at its smallest: attention, conversion, whole clips on two ranks, scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_support import m4v, run_json, statuses

from eval.records import SampleSet, ScoreSet

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1200)]

RECIPE = """
name: wan-smallest
seed: 7
sources:
  - name: shapes
    adapter: {kind: synthetic, count: 6, stills: 4, frames: 17, size: [64, 64]}
curate:
  shots: {detector: histogram}
  signals: {text: false, nsfw: false, quality: false, key_frames: 1}
  filters: {min_frames: 9, min_side: 32, max_text: null, max_nsfw: null, max_brisque: null, max_frozen: null,
            min_motion: null, min_sharpness: null, max_overexposed: null, max_black: null}
  dedup: {perceptual: false}
encode:
  codec: {kind: dct, time_stride: 4}
  text_encoder: {slots: 24}
  buckets: {frames: [5, 13], sizes: [[48, 64]]}
  reconstructions: 1
model: {kind: wan, width: 48, heads: 2, blocks: 2, mlp_width: 96, text_dim: 384, text_slots: 24, frequency_dim: 32,
        rope_limit: 64, chunk_size: 16}
schedule: {kind: wan, shift: 5.0}
attention_until: attention
train:
  - &stage
    name: attention
    steps: 4
    order: &order {frames: 5, min_frames: 5, time_stride: 4, columns: [], tokens_per_pack: 48, packs: 2, image_every: 2}
    optimizer: {lr: 1.0e-3, warmup_steps: 0}
    ema_decay: 0.9
    save_every: 2
  - {<<: *stage, name: 13f, order: {<<: *order, frames: 13}}
generate:
  prompts: [a red circle moves from left to right on a white background]
  frames: 13
  height: 48
  width: 64
  fps: 16
  sampler: {kind: wan, steps: 2, guidance: 3.0, negative_prompt: ""}
evaluate: {}
gate: {rules: [{rule: minimum, metric: local.flicker, value: 0.0}]}
report: {title: Wan at its smallest}
profiles:
  local: {lock_file: constraints.txt, stages: {train: {ranks: 2}}}
"""


def test_wan_goes_from_videos_to_scores(tmp_path: Path) -> None:
    recipe = tmp_path / "wan.yaml"
    recipe.write_text(RECIPE)
    nodes = run_json(tmp_path / "home", str(recipe))
    assert statuses(nodes) == {"ran"}
    assert {"train.attention", "convert", "train.13f"} <= set(nodes)

    def folder(node: str, output: str) -> Path:
        return Path(nodes[node]["outputs"][output]["uri"])

    config = json.loads((folder("train.13f", "checkpoint") / "config.json").read_bytes())
    assert (config["model"]["mixer"], config["ema"], config["codec"]["time_stride"]) == ("mm_dim", True, 4)
    samples = SampleSet.model_validate_json((folder("generate.trained", "samples") / "samples.json").read_bytes())
    assert [(v.frames, v.height, v.width) for v in samples.videos] == [(13, 48, 64)]
    scores = ScoreSet.model_validate_json((folder("evaluate.trained", "scores") / "scores.json").read_bytes())
    assert scores.metrics["local.flicker"].mean is not None
    assert statuses(run_json(tmp_path / "home", str(recipe))) == {"hit"}
    out = tmp_path / "out"
    checkpoint = str(folder("train.13f", "checkpoint"))
    size = ("--frames", "5", "--height", "48", "--width", "64", "--fps", "16", "--steps", "1", "--guidance", "1")
    m4v(tmp_path / "home", "generate", checkpoint, "--prompt", "a blue square", "--out", str(out), *size)
    assert len(list(out.glob("*.mp4"))) == 1
