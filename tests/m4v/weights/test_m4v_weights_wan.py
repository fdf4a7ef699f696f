import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from tiny_wan_vae import write_tiny_wan_vae
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from m4v.codec import open_codec
from m4v.codec.config import WanVaeConfig
from m4v.core.errors import DataIntegrityError
from m4v.wan.keys import to_original
from m4v.wan.published import load_published
from m4v.wan.vae import open_wan_vae
from m4v.weights.catalogue import entry
from m4v.weights.check import check
from m4v.weights.components import components
from m4v.weights.convert import convert
from m4v.weights.expected import expected
from m4v.weights.source import source_files
from m4v.weights.wan_original import text_encoder_key, vae_keys

DIFFUSERS, ORIGINAL = entry("wan2.1-t2v-1.3b"), entry("wan2.1-t2v-1.3b-original")
T5_LEAVES = ("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding", "norm2",
             "ffn.gate.0", "ffn.fc1", "ffn.fc2")  # fmt: skip


def transformer() -> WanTransformer3DModel:
    torch.manual_seed(1)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=2, text_dim=32, freq_dim=16
    )


def text_encoder() -> UMT5EncoderModel:
    torch.manual_seed(2)
    return UMT5EncoderModel(
        UMT5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, tie_word_embeddings=False)
    )


def published_diffusers(folder: Path) -> Path:
    transformer().save_pretrained(folder / "transformer")
    text_encoder().save_pretrained(folder / "text_encoder")
    torch.manual_seed(3)
    AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.1] * 4, latents_std=[2.0] * 4).save_pretrained(folder / "vae")
    others = [f.place for f in DIFFUSERS.files if f.place.startswith(("model_index", "scheduler/", "tokenizer/"))]
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def published_original(folder: Path) -> dict[str, Tensor]:
    """The transformer alone; returns its tensors by diffusers' names."""
    folder.mkdir()
    model = transformer()
    config = {"model_type": "t2v", "dim": 24, "num_heads": 2, "num_layers": 2, "ffn_dim": 32, "text_dim": 32,
              "freq_dim": 16, "in_dim": 16, "out_dim": 16, "eps": 1e-6, "text_len": 512}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file({to_original(key): value for key, value in state.items()}, folder / "diffusion_pytorch_model.safetensors")
    return state


def original_text_encoder() -> dict[str, Tensor]:
    """Tensors of `text_encoder()` by Wan's names."""
    names = [
        "token_embedding.weight",
        "norm.weight",
        *(f"blocks.{i}.{leaf}.weight" for i in (0, 1) for leaf in T5_LEAVES),
    ]
    state = text_encoder().state_dict()
    return {name: state[text_encoder_key(name)].clone() for name in names}


def test_diffusers_folder_is_checked_and_taken_over(tmp_path: Path) -> None:
    source = published_diffusers(tmp_path / "hub")
    report = check(DIFFUSERS, source, published=False)
    assert report.ok, report.lines()
    assert {c.component: c.compared for c in report.components} == {
        "text_encoder": True,
        "transformer": True,
        "vae": True,
    }
    record = convert(DIFFUSERS, source, tmp_path / "out", published=False)
    assert record.format == "wan_diffusers"
    found, model = load_published(tmp_path / "out").state_dict(), transformer().state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.items())
    assert open_wan_vae(tmp_path / "out").vae.config.z_dim == 4
    for file in record.source:
        assert (tmp_path / "out" / file.path).read_bytes() == (source / file.path).read_bytes()


def test_the_vae_alone_is_imported_for_the_codec(tmp_path: Path) -> None:
    found = entry("wan2.1-vae")
    whole = {file.file: file.size_bytes for file in DIFFUSERS.files}
    assert {file.file: file.size_bytes for file in found.files}.items() <= whole.items()
    assert found.fetch_command.endswith("--include 'vae/*' --local-dir $M4V_WEIGHTS/Wan-AI/Wan2.1-VAE")
    write_tiny_wan_vae(tmp_path / "hub" / "vae")
    record = convert(found, tmp_path / "hub", tmp_path / "out", published=False)
    assert record.format == "wan_diffusers"
    codec = open_codec(WanVaeConfig(weights="wan"), {"wan": tmp_path / "out"})
    assert codec.time_stride == 4


def test_published_sizes_are_held(tmp_path: Path) -> None:
    report = check(DIFFUSERS, published_diffusers(tmp_path / "hub"))
    states = {f.place: f.state for f in report.files}
    assert states["transformer/config.json"] == "wrong size"
    assert states["transformer/diffusion_pytorch_model-00001-of-00002.safetensors"] == "missing"
    assert not report.ok


def test_original_transformer_alone_is_enough(tmp_path: Path) -> None:
    state = published_original(tmp_path / "hub")
    report = check(ORIGINAL, tmp_path / "hub", published=False)
    assert report.ok, report.lines()
    assert {f.state for f in report.files} == {"ok", "not here"}
    convert(ORIGINAL, tmp_path / "hub", tmp_path / "out", published=False)
    found = load_published(tmp_path / "out").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_original_text_encoder_becomes_transformers_own(tmp_path: Path) -> None:
    published_original(tmp_path / "hub")
    torch.save(original_text_encoder(), tmp_path / "hub/models_t5_umt5-xxl-enc-bf16.pth")
    report = check(ORIGINAL, tmp_path / "hub", published=False)
    assert report.ok, report.lines()
    convert(ORIGINAL, tmp_path / "hub", tmp_path / "out", published=False)
    loaded, facts = UMT5EncoderModel.from_pretrained(tmp_path / "out/text_encoder", output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    ids = torch.tensor([[5, 7, 9, 1]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, text_encoder().eval()(ids).last_hidden_state)
    assert load_published(tmp_path / "out") is not None, "other models do not stand between the transformer's shards"


def test_original_files_of_other_models_are_refused(tmp_path: Path) -> None:
    published_original(tmp_path / "hub")
    path = tmp_path / "hub/models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(DataIntegrityError, match=r"not Wan's text encoder.*enc-bf16\.pth"):
        convert(ORIGINAL, tmp_path / "hub", tmp_path / "out", published=False)
    state = original_text_encoder()
    del state["blocks.1.ffn.fc2.weight"]
    torch.save(state, path)
    with pytest.raises(DataIntegrityError, match=r"1 tensor missing: encoder\.block\.1\.layer\.1\.DenseReluDense\.wo"):
        convert(ORIGINAL, tmp_path / "hub", tmp_path / "out", published=False)
    path.unlink()
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "hub/Wan2.1_VAE.pth")
    with pytest.raises(DataIntegrityError, match="193 tensors missing"):
        convert(ORIGINAL, tmp_path / "hub", tmp_path / "out", published=False)


def test_full_text_encoder_has_all_242_names() -> None:
    config: dict[str, object] = {
        "model_type": "umt5", "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "vocab_size": 256384, "tie_word_embeddings": False,
    }  # fmt: skip
    names = [f"blocks.{i}.{leaf}.weight" for i in range(24) for leaf in T5_LEAVES]
    names += ["token_embedding.weight", "norm.weight"]
    wanted = expected("umt5", config, "config.json")
    assert wanted is not None
    assert {text_encoder_key(name) for name in names} == set(wanted.shapes) - wanted.optional
    assert len(names) == 242
    assert text_encoder_key("head.weight") == "head.weight"


def original_vae_names() -> Iterator[str]:
    """Names in the published VAE: encoder and decoder as lists of residual blocks and resamplings."""
    for side, blocks, shortcuts, plain, timed in (
        ("encoder.downsamples", (0, 1, 3, 4, 6, 7, 9, 10), (3, 6), (2,), (5, 8)),
        ("decoder.upsamples", (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14), (4,), (11,), (3, 7)),
    ):
        for block in blocks:
            yield from residual(f"{side}.{block}")
        for block in shortcuts:
            yield from pair(f"{side}.{block}.shortcut")
        for block in (*plain, *timed):
            yield from pair(f"{side}.{block}.resample.1")
        for block in timed:
            yield from pair(f"{side}.{block}.time_conv")
        half = side.split(".")[0]
        for block in (0, 2):
            yield from residual(f"{half}.middle.{block}")
        yield f"{half}.middle.1.norm.gamma"
        yield f"{half}.head.0.gamma"
        for name in ("conv1", "head.2", "middle.1.to_qkv", "middle.1.proj"):
            yield from pair(f"{half}.{name}")
    yield from pair("conv1")
    yield from pair("conv2")


def residual(block: str) -> Iterator[str]:
    yield from (f"{block}.residual.{place}.gamma" for place in (0, 3))
    yield from pair(f"{block}.residual.2")
    yield from pair(f"{block}.residual.6")


def pair(module: str) -> Iterator[str]:
    yield f"{module}.weight"
    yield f"{module}.bias"


def test_full_vae_has_all_194_names() -> None:
    names = list(original_vae_names())
    wanted = expected("wan_vae", {"_class_name": "AutoencoderKLWan"}, "config.json")
    assert wanted is not None
    assert len(names) == 194
    assert set(vae_keys(names, "x").values()) == set(wanted.shapes)


def test_original_components_go_where_diffusers_has_them(tmp_path: Path) -> None:
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    files = [file for file in source_files(ORIGINAL, tmp_path) if not file.is_absent]
    parts = {part.kind: (part.output, part.merged_name) for part in components(ORIGINAL, files)}
    assert parts["umt5"] == ("text_encoder", "model.safetensors")
    assert parts["wan_vae"] == ("vae", "diffusion_pytorch_model.safetensors")
    assert parts["wan_transformer"][0] == ""
