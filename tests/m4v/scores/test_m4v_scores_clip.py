import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from m4v.core.asset_catalog import asset_path
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.scores.clip import MEAN, STD, ClipScore, open_clip_score, preprocess
from m4v.scores.clip_config import TOWERS, VOCABULARY, ClipTowers, HpsConfig
from m4v.scores.clip_tokens import ClipTokens
from m4v.scores.clip_towers import vision_tower
from m4v.scores.config import ScorerConfig
from m4v.weights.catalogue import entry
from m4v.weights.convert import convert

TINY = ClipTowers(
    embed_dim=32, patch=28, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2, text_heads=2
)
HPS = HpsConfig(weights="hps", towers=TINY, dtype="float32")


@pytest.fixture(scope="module")
def imported(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights in HPSv2's published form (a pickled `{"state_dict": …}`), imported by the product."""
    published, folder = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("imported")
    state = load_file(oracles / "reward" / "tiny_clip_state_dict.safetensors")
    torch.save({"state_dict": state}, published / "HPS_v2.1_compressed.pt")
    convert(entry("hpsv2.1"), published, folder, published=False)
    return folder


@pytest.fixture(scope="module")
def score(imported: Path) -> ClipScore:
    return open_clip_score(HPS, {"hps": imported})


@pytest.fixture(scope="module")
def case(oracles: Path) -> dict[str, Tensor]:
    return load_file(oracles / "reward" / "hps_score_case.safetensors")


@pytest.fixture(scope="module")
def prompts(oracles: Path) -> list[str]:
    return json.loads((oracles / "reward" / "config.json").read_text())["prompts"]


def test_scores_and_gradient_are_those_of_hpsv2(
    score: ClipScore, case: dict[str, Tensor], prompts: list[str], oracle_close: Callable[..., None]
) -> None:
    frames = case["in.frames"].clone().requires_grad_()
    name = "reward/hps_score_case.safetensors"
    pixels = preprocess(frames.detach(), 224, "pad")
    oracle_close(name, pixels, case["mid.preprocessed"], atol=1e-6, rtol=0)
    text = score.text_features(prompts)
    oracle_close(name, text, case["mid.text_features"], atol=1e-6, rtol=0)
    oracle_close(name, score.image_features(frames).detach(), case["mid.image_features"], atol=1e-6, rtol=0)
    scores = score.score(frames, text)
    oracle_close(name, scores.detach(), case["out.score"], atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    oracle_close(name, gradient, case["grad.frames"], atol=1e-7, rtol=0)


def test_tokens_are_those_of_clip(case: dict[str, Tensor], prompts: list[str], score: ClipScore) -> None:
    tokens = ClipTokens(asset_path(VOCABULARY))
    assert torch.equal(tokens(prompts), case["in.tokens"])
    assert [score.tokens_cut(prompt) for prompt in prompts] == [0, 0, 3]
    assert torch.equal(tokens(["A  Cat &amp;amp; dog\n"]), tokens(["a cat & dog"]))
    assert tokens([""])[0, :3].tolist() == [49406, 49407, 0]
    assert tokens(["zażółć 你好 🦊"])[0].count_nonzero() > 8, "letters outside the vocabulary are read as bytes"


def test_damaged_merges_are_named(tmp_path: Path) -> None:
    (tmp_path / "merges.gz").write_bytes(asset_path(VOCABULARY).read_bytes()[:-1000])
    with pytest.raises(DataIntegrityError, match=r"merges cannot be read.*merges\.gz"):
        ClipTokens(tmp_path / "merges.gz")(["a"])


def test_frames_are_padded_squashed_or_cropped() -> None:
    frames = torch.ones(1, 3, 120, 200)
    white, black = ((value - torch.tensor(MEAN)) / torch.tensor(STD) for value in (1.0, 0.0))
    padded = preprocess(frames, 224, "pad")
    assert padded.shape == (1, 3, 224, 224)
    rows = (padded[0, :, :, 112] - white[:, None]).abs().amax(0) < 1e-5
    assert int(rows.sum()) == 134, "the longer side fills the network's, the rest is black"
    torch.testing.assert_close(padded[0, :, 0, 0], black)
    for how in ("squash", "crop"):
        torch.testing.assert_close(preprocess(frames, 224, how), white[None, :, None, None].expand(1, 3, 224, 224))
    ramp = torch.linspace(0, 1, 200).expand(1, 3, 120, 200)
    across = {how: preprocess(ramp, 224, how)[0, 0, 112] * STD[0] + MEAN[0] for how in ("squash", "crop")}
    assert across["squash"].min() < 0.01
    assert across["crop"].min() == pytest.approx(0.2, abs=0.01), "a fifth of a 5:3 frame is cut at either side"


def test_a_frames_gradient_is_followed_by_finite_differences(score: ClipScore) -> None:
    drawn = torch.Generator().manual_seed(3)
    frames, way = (torch.rand(2, 3, 72, 120, generator=drawn) for _ in range(2))
    text = score.text_features(["a fox", "a red bicycle"])
    frames.requires_grad_()
    (gradient,) = torch.autograd.grad(score.score(frames, text).sum(), frames)
    with torch.no_grad():
        ahead, behind = (score.score(frames + step * way, text).double().sum() for step in (0.01, -0.01))
    assert float((gradient * way).sum()) == pytest.approx(float((ahead - behind) / 0.02), rel=1e-2)


def test_checkpointed_blocks_are_computed_again_and_change_no_bit(imported: Path, case: dict[str, Tensor]) -> None:
    found, calls = [], []
    for checkpointing in (False, True):
        score = open_clip_score(HPS.model_copy(update={"checkpointing": checkpointing}), {"hps": imported})
        block = next(m for m in score._vision.modules() if type(m).__name__ == "CLIPMLP")
        counted: list[int] = []
        block.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        frames = case["in.frames"].clone().requires_grad_()
        scores = score.score(frames, score.text_features(["a", "b", "c"]))
        found.append((scores.detach(), *torch.autograd.grad(scores.sum(), frames)))
        calls.append(len(counted))
    assert calls == [1, 2]
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def test_bfloat16_towers_score_within_their_steps(imported: Path, score: ClipScore, case: dict[str, Tensor]) -> None:
    half = open_clip_score(HPS.model_copy(update={"dtype": "bfloat16"}), {"hps": imported})
    text = score.text_features(["a corgi"]).expand(3, -1)
    found, exact = half.score(case["in.frames"], text), score.score(case["in.frames"], text)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=2e-2, rtol=0)


def test_what_does_not_fit_is_refused(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hpsv2 needs imported weights.*m4v weights import other"):
        open_clip_score(HPS.model_copy(update={"weights": "other"}), {"hps": imported})
    wide = TINY.model_copy(update={"vision_width": 64})
    with pytest.raises(ConfigError, match="not of the sizes"):
        open_clip_score(HPS.model_copy(update={"towers": wide}), {"hps": imported})
    broken = tmp_path / "model.safetensors"
    broken.write_bytes((imported / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(DataIntegrityError, match="CLIP weights cannot be read"):
        vision_tower(TINY, broken, torch.float32, checkpointing=False)
    with pytest.raises(ValueError, match="2 frames"):
        open_clip_score(HPS, {"hps": imported}).score(torch.zeros(2, 3, 8, 8), torch.zeros(1, 32))


def test_digest_is_of_weights_and_preprocessing_not_of_names(imported: Path, score: ClipScore) -> None:
    def digest(**changes: object) -> str:
        config = HPS.model_copy(update=changes)
        return open_clip_score(config, {str(config.weights): imported}).digest

    assert digest(weights="mine", checkpointing=False) == score.digest
    assert digest(preprocessing="squash") != score.digest


def test_a_section_of_a_recipe_names_its_score() -> None:
    reader: TypeAdapter[ScorerConfig] = TypeAdapter(ScorerConfig)
    assert reader.validate_python({"kind": "hpsv2"}).preprocessing == "pad"  # type: ignore[union-attr]
    assert reader.validate_python({"kind": "clip"}).preprocessing == "crop"  # type: ignore[union-attr]
    assert reader.validate_python({}).kind == "conse"
    with pytest.raises(ValidationError, match="conse, hpsv2 or clip"):
        reader.validate_python({"kind": "pickscore"})


@pytest.mark.parametrize(("name", "parameters"), [("vit-h-14", 986_109_440), ("vit-l-14-openai", 427_616_512)])
def test_published_sizes_have_the_published_parameters(name: str, parameters: int) -> None:
    """Both towers and projections, without the one scale (986.1 M and 427.6 M in open_clip's model table)."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    towers = TOWERS[name]  # type: ignore[index]
    with torch.device("meta"):
        vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=towers.vision_width, num_hidden_layers=towers.vision_layers, patch_size=towers.patch,
                num_attention_heads=towers.vision_heads, intermediate_size=4 * towers.vision_width,
                projection_dim=towers.embed_dim,
            )
        )  # fmt: skip
        text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=towers.text_width, num_hidden_layers=towers.text_layers,
                num_attention_heads=towers.text_heads, intermediate_size=4 * towers.text_width,
                projection_dim=towers.embed_dim, vocab_size=towers.vocabulary,
            )
        )  # fmt: skip
    assert sum(p.numel() for m in (vision, text) for p in m.parameters()) == parameters
