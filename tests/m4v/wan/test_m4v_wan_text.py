"""UMT5 from a local folder, and text to frames from end to end with random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from m4v.core.errors import DataIntegrityError, InputError
from m4v.wan.config import WanConfig, WanSamplerConfig
from m4v.wan.initialise import build_wan
from m4v.wan.sampler import WanSampler
from m4v.wan.text import cleaned, open_umt5
from m4v.wan.vae import WanVae

TEXTS = ["a red star", "", "the red star  over\n the &amp;amp; sea"]


@pytest.fixture
def folder(tiny_text: Path, tmp_path: Path) -> Path:
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    shutil.copytree(tiny_text / "tokenizer_2", tmp_path / "tokenizer")
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    config = UMT5Config(vocab_size=vocabulary, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(tmp_path / "text_encoder")
    return tmp_path


def test_features_are_the_hidden_states_of_the_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = open_umt5(folder, slots=48, dtype=torch.float32)
    found = encoder.encode(TEXTS)
    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for row, text in enumerate(["a red star", "", "the red star over the & sea"]):
        ids = tokenizer(text, return_tensors="pt").input_ids  # no padding at all
        with torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state[0]
        length = ids.shape[1]
        assert found.mask[row].tolist() == [True] * length + [False] * (48 - length)
        torch.testing.assert_close(found.embedding[row, :length], hidden, atol=1e-5, rtol=1e-5)
        assert not found.embedding[row, length:].any()
    assert found.pooled.shape == (3, 0)
    assert torch.equal(encoder.encode(TEXTS[1:2]).embedding[0], found.embedding[1])


def test_long_texts_keep_their_end_token(folder: Path) -> None:
    encoder = open_umt5(folder, slots=4, dtype=torch.float32)
    assert encoder.encode(["star " * 40]).mask.all()
    assert cleaned("  a\t&lt;b&gt; ") == "a <b>"


def test_digest_is_that_of_the_files_and_the_slots(folder: Path) -> None:
    first = open_umt5(folder, slots=8).digest
    assert first == open_umt5(folder, slots=8).digest
    assert first != open_umt5(folder, slots=9).digest
    path = folder / "text_encoder" / "model.safetensors"
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert first != open_umt5(folder, slots=8).digest


def test_damaged_encoders_are_refused(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    lost = "encoder.final_layer_norm.weight"
    save_file({k: v for k, v in state.items() if k != lost}, path, metadata={"format": "pt"})
    with pytest.raises(DataIntegrityError, match=f"lacks tensors.*{lost}"):
        open_umt5(folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataIntegrityError, match="text encoder cannot be read"):
        open_umt5(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(InputError, match="no UMT5 text encoder"):
        open_umt5(folder)


def test_text_becomes_frames(folder: Path) -> None:
    """The whole path with random weights: prompt, negative prompt, sampling, decoding; equal seeds, equal bytes."""
    encoder = open_umt5(folder, slots=8, dtype=torch.float32)
    config = WanConfig(
        width=24, heads=2, blocks=2, mlp_width=40, latent_channels=4, text_dim=12, text_slots=8, frequency_dim=16
    )
    model = build_wan(config, 0)
    with torch.no_grad():
        model.proj_out.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    vae = WanVae(
        AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        )
    )
    sampler = WanSampler(model, WanSamplerConfig(steps=2))

    def frames(text: str, seed: int) -> np.ndarray:
        latents = sampler.sample(encoder.encode([text]), encoder.encode([""]), vae.latent_shape(5, 32, 48), [seed])
        return vae.decode(latents[0])

    found = frames("a red star", 1)
    assert (found.shape, found.dtype) == ((5, 32, 48, 3), np.uint8)
    np.testing.assert_array_equal(found, frames("a red star", 1))
    assert not np.array_equal(found, frames("a red star", 2))
    assert not np.array_equal(found, frames("the sea", 1))
