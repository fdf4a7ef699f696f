"""Deep: our scores beside those of the real `hpsv2x` 1.2.0 and `open_clip` 3.3.0, installed for this test alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.vbench.prompt_suite import suite_prompts, wording
from m4v.core.asset_catalog import asset_path
from m4v.scores.clip import ClipScore, preprocess
from m4v.scores.clip_config import VOCABULARY, ClipTowers, HpsConfig
from m4v.scores.clip_tokens import ClipTokens
from m4v.scores.clip_towers import text_tower, vision_tower

PACKAGES = (
    "torchvision==0.28.0", "open_clip_torch==3.3.0", "timm==1.0.31", "hpsv2x==1.2.0", "ftfy", "wcwidth", "clint",
    "args",
)  # fmt: skip
ODD = ["", "A  cat\n&amp; a DOG!!", "l'été, 12345 times — zażółć 你好 🦊", "it's we'll they'd", "<b>bold</b> &lt;3 $#@"]
pytestmark = pytest.mark.deep


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    longer = [*wording("longer").values()]
    return [*ODD, *(prompt.prompt for prompt in suite_prompts()), *longer[::20]]


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    drawn = torch.Generator().manual_seed(5)
    smooth = [
        torch.rand(3, 6, 9, generator=drawn),
        torch.rand(3, 9, 6, generator=drawn),
        torch.rand(3, 5, 5, generator=drawn),
    ]
    sizes = ((480, 832), (640, 384), (224, 224))
    return [
        (torch.nn.functional.interpolate(s[None], size, mode="bicubic")[0].clamp(0, 1) * 255).byte().permute(1, 2, 0)
        for s, size in zip(smooth, sizes, strict=True)
    ]


@pytest.fixture(scope="module")
def peers(
    packages: Path, texts: list[str], pictures: list[Tensor], oracles: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Tensor]]:
    folder, weights = tmp_path_factory.mktemp("peers"), oracles / "reward" / "tiny_clip_state_dict.safetensors"
    config = json.loads((oracles / "reward" / "config.json").read_text())["model_config"]
    torch.save({"weights": str(weights), "config": config, "texts": texts, "pictures": pictures}, folder / "case.pt")
    script = Path(__file__).with_name("clip_peers.py")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, script, folder / "case.pt", folder / "out.pt"], check=True, env=environment)
    found: dict[str, dict[str, Tensor]] = torch.load(folder / "out.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def score(oracles: Path) -> ClipScore:
    weights = oracles / "reward" / "tiny_clip_state_dict.safetensors"
    towers = ClipTowers(
        embed_dim=32, patch=28, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2,
        text_heads=2,
    )  # fmt: skip
    tokens = ClipTokens(asset_path(VOCABULARY))
    vision = vision_tower(towers, weights, torch.float32, checkpointing=False)
    text = text_tower(towers, weights, torch.float32, tokens.end)
    return ClipScore(HpsConfig(towers=towers, dtype="float32"), towers, vision, text, tokens, {})


@pytest.mark.parametrize("name", ["hpsv2", "open_clip"])
def test_tokens_and_text_features_are_theirs(
    name: str, peers: dict[str, dict[str, Tensor]], texts: list[str], score: ClipScore
) -> None:
    assert torch.equal(ClipTokens(asset_path(VOCABULARY))(texts), peers[name]["tokens"])
    torch.testing.assert_close(score.text_features(texts), peers[name]["text"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["hpsv2", "open_clip"])
def test_scores_are_theirs_on_their_own_pixels(
    name: str, peers: dict[str, dict[str, Tensor]], texts: list[str], pictures: list[Tensor], score: ClipScore
) -> None:
    """Their preprocessing works on 8-bit pictures and rounds to them: from its pixels on the scores are equal, from
    ours on they differ by the rounding of a pixel."""
    theirs = peers[name]
    images = torch.nn.functional.normalize(score._vision(pixel_values=theirs["pixels"]).image_embeds, dim=-1)
    torch.testing.assert_close(images, theirs["image"], atol=1e-6, rtol=0)
    frames = [picture.permute(2, 0, 1)[None].float() / 255 for picture in pictures]
    found = torch.cat([score.score(f, score.text_features([t])) for f, t in zip(frames, texts, strict=False)])
    torch.testing.assert_close(found, theirs["scores"], atol=1e-3, rtol=0)
    for frame, pixels in zip(frames, theirs["pixels"], strict=True):
        ours = preprocess(frame, 224, "pad")[0]
        assert float((ours - pixels).abs().max()) < 2 * 4 / 255, "two steps of an 8-bit value, normalised"
