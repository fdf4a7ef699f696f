"""Image-text scores of a reward as metrics of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from eval.config import EvaluateConfig, weights_of
from eval.metrics.clip import Clip
from eval.metrics.scored import scorer_metrics
from eval.vocabulary import Facts
from m4v.scores import open_scorer
from m4v.scores.clip_config import ClipConfig, ClipTowers, HpsConfig
from m4v.scores.config import ConseConfig
from m4v.weights.catalogue import entry
from m4v.weights.convert import convert

TINY = ClipTowers(
    embed_dim=32, patch=28, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2, text_heads=2
)
HPS = HpsConfig(weights="hps", towers=TINY, dtype="float32")


def test_a_scorer_is_the_mean_over_evenly_spaced_frames_under_the_prompt(oracles: Path, tmp_path: Path) -> None:
    published, folder = tmp_path / "published", tmp_path / "imported"
    for place in (published, folder):
        place.mkdir()
    state = load_file(oracles / "reward" / "tiny_clip_state_dict.safetensors")
    torch.save({"state_dict": state}, published / "HPS_v2.1_compressed.pt")
    convert(entry("hpsv2.1"), published, folder, published=False)
    frames = np.random.default_rng(1).integers(0, 256, (9, 40, 56, 3), dtype=np.uint8)
    (metric,) = scorer_metrics(EvaluateConfig(scorers=(HPS,), conse_frames=3), {"hps": folder})
    reading = metric.measure(Clip(frames, 8.0, "a red circle", Facts()))
    scorer = open_scorer(HPS, {"hps": folder})
    pixels = torch.from_numpy(frames[[0, 4, 8]]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = scorer.score(pixels, scorer.text_features(["a red circle"]).expand(3, -1)).mean()
    assert metric.name == "score.hps"
    assert reading.value == pytest.approx(float(expected), abs=1e-6)


def test_scorers_have_names_of_their_own_and_stand_in_the_key_when_used() -> None:
    with pytest.raises(ValidationError, match="different weights"):
        EvaluateConfig(scorers=(HPS, HPS))
    config = EvaluateConfig(metrics=("local.flicker",), scorers=(HPS, ClipConfig(weights="clip"), ConseConfig()))
    assert [m.name for m in scorer_metrics(config, {})] == ["score.hps", "score.clip", "score.conse"]
    assert EvaluateConfig.model_validate(config.canonical()) == config
    assert weights_of(config).items() >= ConseConfig().packaged().items()
    assert "scorers" not in EvaluateConfig().canonical()
