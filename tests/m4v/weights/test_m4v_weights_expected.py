import json
from pathlib import Path

import pytest

from m4v.core.errors import DataIntegrityError
from m4v.weights.catalogue import entry
from m4v.weights.check import check
from m4v.weights.expected import expected
from m4v.weights.pyramidflow import model_config

T5_XXL = {
    "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "vocab_size": 32128, "tie_word_embeddings": False, "is_encoder_decoder": True,
}  # fmt: skip
CLIP_L = {
    "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 49408, "max_position_embeddings": 77, "projection_dim": 768,
    "hidden_act": "quick_gelu", "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def published(oracles: Path, name: str) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:
    data = json.loads((oracles / "pyramidflow/full_shapes" / name).read_text())
    shapes = next(value for key, value in data.items() if isinstance(value, dict) and key != "config")
    return data["config"], {key: tuple(shape) for key, shape in shapes.items()}


def test_transformer_expects_the_published_keys(oracles: Path) -> None:
    config, shapes = published(oracles, "flux_miniflux_keys.json")
    wanted = expected("pyramidflow_dit", config, "config.json")
    assert wanted is not None
    assert wanted.shapes == shapes
    assert len(shapes) == 496


def test_vae_expects_the_published_keys(oracles: Path) -> None:
    config, shapes = published(oracles, "causal_video_vae_keys.json")
    wanted = expected("pyramidflow_vae", config, "config.json")
    assert wanted is not None
    assert wanted.shapes == shapes
    assert len(shapes) == 260


def test_text_models_have_the_published_sizes() -> None:
    t5 = expected("t5", T5_XXL, "config.json")
    assert t5 is not None
    assert t5.shapes["shared.weight"] == (32128, 4096)
    assert sum(_size(s) for k, s in t5.shapes.items() if k not in t5.optional) == 4_762_310_656
    clip = expected("clip_text", CLIP_L, "config.json")
    assert clip is not None
    assert sum(_size(s) for k, s in clip.shapes.items() if k not in clip.optional) == 123_060_480
    assert clip.shapes["text_model.encoder.layers.11.mlp.fc1.weight"] == (3072, 768)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_wan_transformers_have_the_published_sizes() -> None:
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
    wanted = expected("wan_transformer", {"_class_name": "WanTransformer3DModel", **sizes}, "config.json")
    assert wanted is not None
    assert sum(_size(s) for s in wanted.shapes.values()) == 1_418_996_800
    assert wanted.rename("blocks.0.attn1.to_q.weight") == "blocks.0.attn1.to_q.weight"
    original = expected("wan_transformer", {"dim": 1536, "num_heads": 12, "num_layers": 30, "ffn_dim": 8960}, "x")
    assert original is not None
    assert original.shapes == wanted.shapes
    assert original.rename("blocks.0.self_attn.q.weight") == "blocks.0.attn1.to_q.weight"


def test_wans_text_encoder_and_vae_have_the_published_sizes() -> None:
    t5 = {**T5_XXL, "model_type": "umt5", "vocab_size": 256384}
    wanted = expected("umt5", t5, "config.json")
    assert wanted is not None
    headers = 30_400  # bytes
    shards = [f.size_bytes or 0 for f in entry("wan2.1-t2v-1.3b").files if "text_encoder/model-" in f.place]
    tensors = sum(_size(s) for k, s in wanted.shapes.items() if k not in wanted.optional)
    assert 0 < sum(shards) - 4 * tensors <= headers
    vae = expected("wan_vae", {"_class_name": "AutoencoderKLWan"}, "config.json")
    assert vae is not None
    assert (len(vae.shapes), sum(_size(s) for s in vae.shapes.values())) == (194, 126_892_531)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("t5", {**T5_XXL, "model_type": "umt5"}, "not of a t5 model: 'umt5'"),
        ("clip_text", {}, "not of a clip_text_model model"),
        ("pyramidflow_dit", {"_class_name": "PyramidDiffusionMMDiT"}, "PyramidDiffusionMMDiT"),
        ("pyramidflow_dit", {"num_layers": 8}, "lacks a size.*attention_head_dim"),
        ("t5", {"model_type": "t5", "num_heads": "many"}, "num_heads"),
    ],
)
def test_configs_of_no_such_model_are_refused(kind: str, config: dict[str, object], words: str) -> None:
    with pytest.raises(DataIntegrityError, match=words):
        expected(kind, config, "config.json")  # type: ignore[arg-type]


def test_plain_state_dicts_are_held_to_no_model() -> None:
    assert expected("state_dict", {}, "") is None


def test_published_configuration_is_the_products_default(oracles: Path) -> None:
    config, _ = published(oracles, "flux_miniflux_keys.json")
    found = model_config({**config, "in_channels": 64}, "config.json")
    assert (found.width, found.heads, found.double_blocks, found.single_blocks) == (1920, 30, 8, 16)
    assert (found.axes, found.text_dim, found.pooled_dim, found.latent_channels) == ((16, 24, 24), 4096, 768, 16)


def test_tiny_text_encoders_match_their_own_configs(tiny_text: Path) -> None:
    report = check(entry("pyramidflow-text"), tiny_text)
    assert report.ok
    assert [(c.component, c.compared) for c in report.components] == [("text_encoder", True), ("text_encoder_2", True)]
    assert all(c.parameters > 0 for c in report.components)


def test_code_of_models_is_not_in_the_key_of_an_import() -> None:
    from pipelines.keys.code import reachable_files

    files = reachable_files(["m4v.weights.stage:run", "m4v.weights.config:WeightsConfig"])
    assert "m4v/weights/convert.py" in files
    assert not [path for path in files if path.startswith(("m4v/model/", "m4v/vae/", "m4v/wan/"))]
