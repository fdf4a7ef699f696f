"""Wan's own VAE and UMT5 files, as the import of weights leaves them, equal diffusers' and transformers' models."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor, nn

from m4v.core.errors import DataIntegrityError
from m4v.wan.part_keys import umt5_key, vae_key
from m4v.wan.text import open_umt5
from m4v.wan.vae import WanVae, open_wan_vae


def candidates() -> list[str]:
    """Every module name that Wan's original VAE can have, and a few more."""
    residual = ["residual.0", "residual.2", "residual.3", "residual.6", "shortcut"]
    attention, resample = ["norm", "to_qkv", "proj"], ["resample.1", "time_conv"]
    names = ["conv1", "conv2"]
    for side, group, count in (("encoder", "downsamples", 11), ("decoder", "upsamples", 15)):
        names += [f"{side}.conv1", f"{side}.head.0", f"{side}.head.2"]
        names += [f"{side}.middle.{n}.{rest}" for n in (0, 2) for rest in residual]
        names += [f"{side}.middle.1.{rest}" for rest in attention]
        names += [f"{side}.{group}.{n}.{rest}" for n in range(count) for rest in residual + resample]
    return names


def original_vae_state(vae: AutoencoderKLWan) -> dict[str, Tensor]:
    """The tensors under the original names, through diffusers' own table of names."""
    found = {}
    for name in candidates():
        for leaf in ("weight", "bias", "gamma"):
            original = f"{name}.{leaf}"
            (key,) = convert_wan_vae_to_diffusers({original: torch.zeros(1)})
            if key in vae.state_dict():
                found[original] = vae.state_dict()[key].clone()
    return found


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=2)


def test_vae_names_are_those_of_diffusers_converter(vae: AutoencoderKLWan) -> None:
    state = original_vae_state(vae)
    assert len(state) == len(vae.state_dict())
    theirs = convert_wan_vae_to_diffusers(dict(state))
    ours = {vae_key(name): tensor for name, tensor in state.items()}
    assert ours.keys() == theirs.keys() == vae.state_dict().keys()
    assert all(ours[key] is theirs[key] for key in ours)


def test_original_vae_decodes_as_diffusers(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    save_file(original_vae_state(vae), tmp_path / "vae" / "model.safetensors")
    latent = torch.randn(16, 2, 2, 4, generator=torch.Generator().manual_seed(1))
    found = open_wan_vae(tmp_path)
    np.testing.assert_array_equal(found.decode(latent), WanVae(vae).decode(latent))
    assert found.digest == WanVae(vae).digest


def test_damaged_original_vae_is_refused(vae: AutoencoderKLWan, tmp_path: Path) -> None:
    state, path = original_vae_state(vae), tmp_path / "model.safetensors"
    save_file({k: v for k, v in state.items() if k != "decoder.head.2.bias"}, path)
    with pytest.raises(DataIntegrityError, match=r"missing: \['decoder.conv_out.bias'\]"):
        open_wan_vae(tmp_path)
    save_file({**state, "decoder.extra.0.bias": torch.zeros(1)}, path)
    with pytest.raises(DataIntegrityError, match=r"not part of Wan2\.1's VAE: 'decoder\.extra\.0\.bias'"):
        open_wan_vae(tmp_path)
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(DataIntegrityError, match=r"no Wan VAE.*encoder.conv1.weight"):
        open_wan_vae(tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(DataIntegrityError, match="truncated or not in safetensors"):
        open_wan_vae(tmp_path)


@pytest.fixture
def umt5(tiny_text: Path, tmp_path: Path) -> tuple[nn.Module, Path]:
    """A tiny UMT5 with every weight moved from its start, and a folder with its tokenizer."""
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    shutil.copytree(tiny_text / "tokenizer_2", tmp_path / "google" / "umt5-xxl")
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(tmp_path / "google" / "umt5-xxl"))
    config = UMT5Config(vocab_size=vocabulary, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tmp_path


def original_umt5_state(model: nn.Module) -> dict[str, Tensor]:
    """By the modules of the original definition: T5Encoder, T5SelfAttention, T5FeedForward, T5RelativeEmbedding."""
    state = {"token_embedding.weight": model.shared.weight, "norm.weight": model.encoder.final_layer_norm.weight}
    for number, block in enumerate(model.encoder.block):
        attention, ff, here = block.layer[0].SelfAttention, block.layer[1].DenseReluDense, f"blocks.{number}"
        state |= {f"{here}.attn.{part}.weight": getattr(attention, part).weight for part in "qkvo"}
        state[f"{here}.pos_embedding.embedding.weight"] = attention.relative_attention_bias.weight
        state[f"{here}.norm1.weight"] = block.layer[0].layer_norm.weight
        state[f"{here}.norm2.weight"] = block.layer[1].layer_norm.weight
        # hidden = fc1(x) * gelu(gate(x)); transformers multiplies act(wi_0 x) with wi_1 x
        state |= {f"{here}.ffn.gate.0.weight": ff.wi_0.weight, f"{here}.ffn.fc1.weight": ff.wi_1.weight}
        state[f"{here}.ffn.fc2.weight"] = ff.wo.weight
    return {key: value.detach().clone() for key, value in state.items()}


def test_original_umt5_encodes_as_transformers(umt5: tuple[nn.Module, Path]) -> None:
    model, folder = umt5
    (folder / "text_encoder").mkdir()
    save_file(original_umt5_state(model), folder / "text_encoder" / "model.safetensors")
    found = open_umt5(folder, slots=24, dtype=torch.float32)
    original = found.encode(["the red star", ""])
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")
    published = open_umt5(folder, slots=24, dtype=torch.float32).encode(["the red star", ""])
    assert torch.equal(original.mask, published.mask)
    torch.testing.assert_close(original.embedding, published.embedding, atol=1e-6, rtol=1e-6)
    assert original.embedding.abs().max() > 0.1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: state.pop("blocks.1.ffn.fc2.weight"), "encoder.block.1.layer.1.DenseReluDense.wo.weight"),
        (lambda state: state.pop("token_embedding.weight"), "no UMT5 encoder.*shared.weight"),
        (lambda state: state.update({"head.weight": torch.zeros(1)}), "not part of .*: 'head.weight'"),
    ],
)  # fmt: skip
def test_damaged_original_umt5_is_refused(
    umt5: tuple[nn.Module, Path], damage: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    model, folder = umt5
    (folder / "text_encoder").mkdir()
    state = original_umt5_state(model)
    damage(state)
    save_file(state, folder / "text_encoder" / "model.safetensors")
    with pytest.raises(DataIntegrityError, match=words):
        open_umt5(folder)


def test_names_of_other_models_are_refused() -> None:
    for rename, name in ((vae_key, "encoder.mid.block_1.conv1.weight"), (umt5_key, "encoder.block.0.layer.0.x.weight")):
        with pytest.raises(DataIntegrityError, match=name):
            rename(name)
