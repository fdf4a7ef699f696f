"""CLIP and HPSv2 towers on a GPU in bfloat16: against HPSv2's own numbers, and against float64 on the CPU, which the
CPU tests hold equal to open_clip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from clip_weights import save_clip
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.config import Dtype
from m4v.core.asset_catalog import asset_path
from m4v.scores.clip import ClipScore, open_clip_score, preprocess
from m4v.scores.clip_config import VOCABULARY, ClipConfig, ClipPreprocessing, ClipTowers, HpsConfig
from m4v.scores.clip_tokens import ClipTokens
from m4v.scores.clip_towers import vision_tower

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ORACLES = Path(os.environ.get("M4V_ORACLES", Path(__file__).parents[3] / "shared" / "oracles")) / "reward"
GOLDEN = ClipTowers(
    embed_dim=32, patch=28, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2, text_heads=2
)
DEEP = ClipTowers(
    embed_dim=64, patch=14, vision_width=128, vision_layers=8, vision_heads=2, text_width=32, text_layers=1,
    text_heads=2, image_side=112, activation="quick_gelu",
)  # fmt: skip
# Of a cosine: bfloat16's own step at HPSv2's scores is 2e-3. In float32 the patches' convolution rounds to tf32.
SCORE_STEP = {"bfloat16": 6e-3, "float32": 1e-3}
GRADIENT_COSINE = {"bfloat16": 0.999, "float32": 0.9999}


def agreement(found: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(found.double().flatten().cpu(), expected.double().flatten().cpu(), dim=0))


def scored(score: ClipScore, frames: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors of the frames, scores, and the gradient of the scores' sum at the frames."""
    given = frames.cuda().requires_grad_()
    features = score.image_features(given)
    scores = score.compare(features, text)
    (gradient,) = torch.autograd.grad(scores.sum(), given)
    return features.detach().cpu(), scores.detach().cpu(), gradient.cpu()


@pytest.mark.skipif(not ORACLES.is_dir(), reason="golden numbers are not here; set M4V_ORACLES")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_scores_and_gradient_are_near_those_of_hpsv2(dtype: Dtype, checkpointing: bool) -> None:
    case = load_file(ORACLES / "hps_score_case.safetensors")
    vision = vision_tower(
        GOLDEN, ORACLES / "tiny_clip_state_dict.safetensors", getattr(torch, dtype), checkpointing=checkpointing
    ).cuda()
    config = HpsConfig(weights="hps", towers=GOLDEN, dtype=dtype)
    # The golden text features stand for the text tower, which always runs on the CPU.
    score = ClipScore(config, GOLDEN, vision, nn.Identity(), ClipTokens(asset_path(VOCABULARY)), {})
    features, scores, gradient = scored(score, case["in.frames"], case["mid.text_features"])
    print(f"{dtype}: score {float((scores - case['out.score']).abs().max()):.2e}, "
          f"gradient's cosine {agreement(gradient, case['grad.frames']):.6f}")  # fmt: skip
    torch.testing.assert_close(scores, case["out.score"], atol=SCORE_STEP[dtype], rtol=0)
    torch.testing.assert_close(features, case["mid.image_features"], atol=SCORE_STEP[dtype], rtol=0)
    assert agreement(gradient, case["grad.frames"]) > GRADIENT_COSINE[dtype]


@pytest.mark.parametrize("how", ["pad", "squash", "crop"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_scorer_on_the_gpu_is_near_float64_on_the_cpu(tmp_path: Path, dtype: Dtype, how: ClipPreprocessing) -> None:
    """Opened as a reward opens it, so that it also passed its self-test there."""
    save_clip(tmp_path, "clip-vit-l-14", DEEP, torch.Generator().manual_seed(4))
    config = ClipConfig(weights="clip", towers=DEEP, dtype=dtype, preprocessing=how)
    score = open_clip_score(config, {"clip": tmp_path}, "cuda")
    drawn = torch.Generator().manual_seed(5)
    coarse = torch.rand(3, 3, 6, 10, generator=drawn)
    frames = F.interpolate(coarse, (96, 160), mode="bicubic").clamp(0, 1)
    text = score.text_features(["a fox", "a red bicycle", "waves at night"]).cpu()
    found, scores, gradient = scored(score, frames, text)

    exact = vision_tower(DEEP, tmp_path / "model.safetensors", torch.float64, checkpointing=False)
    given = frames.double().requires_grad_()
    embedded = exact(pixel_values=preprocess(given, DEEP.image_side, how)).image_embeds
    expected = F.normalize(embedded, dim=-1)
    cosines = (expected * text.double()).sum(-1)
    (wanted,) = torch.autograd.grad(cosines.sum(), given)
    print(f"{dtype}, {how}: score {float((scores - cosines.detach()).abs().max()):.2e}, "
          f"gradient's cosine {agreement(gradient, wanted):.6f}")  # fmt: skip
    torch.testing.assert_close(scores.double(), cosines.detach(), atol=SCORE_STEP[dtype], rtol=0)
    torch.testing.assert_close(found.double(), expected.detach(), atol=SCORE_STEP[dtype], rtol=0)
    assert agreement(gradient, wanted) > GRADIENT_COSINE[dtype]
