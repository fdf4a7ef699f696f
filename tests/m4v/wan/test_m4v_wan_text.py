"""UMT5 from a local folder, and videos from text with random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from m4v.core.errors import DataIntegrityError, InputError
from m4v.wan.checkpoint import WanCheckpointConfig, save_wan
from m4v.wan.config import WanConfig, WanSamplerConfig
from m4v.wan.generate import WanGenerator
from m4v.wan.initialise import build_wan
from m4v.wan.text import cleaned, open_umt5
from m4v.wan.transformer import WanTransformer
from m4v.wan.vae import open_wan_vae

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


def published_parts(folder: Path) -> Path:
    """A tiny random VAE beside the text encoder."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    vae.save_pretrained(folder / "vae")
    return folder


def random_model(mixer: str) -> WanTransformer:
    config = {
        "width": 24, "heads": 2, "blocks": 2, "mlp_width": 40, "latent_channels": 4, "text_dim": 12,
        "frequency_dim": 16, "mixer": mixer,
    }  # fmt: skip
    model = build_wan(WanConfig.model_validate(config), 0)
    with torch.no_grad():
        model.proj_out.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return model


SIZE = {"frames": 5, "height": 32, "width": 48, "sampler": WanSamplerConfig(steps=2)}


def test_a_checkpoint_makes_videos(folder: Path, tmp_path: Path) -> None:
    """The whole path with random weights: prompt, negative prompt, sampling, decoding; equal seeds, equal bytes."""
    parts, model = published_parts(folder), random_model("mm_dim")
    (tmp_path / "checkpoint").mkdir()
    save_wan(tmp_path / "checkpoint", WanCheckpointConfig(model=model.wan), model.state_dict())
    generator = WanGenerator.open(tmp_path / "checkpoint", parts=parts, dtype="float32")
    found = generator.generate("a red star", seed=1, **SIZE)
    assert (found.frames.shape, found.frames.dtype, found.fps) == ((5, 32, 48, 3), np.uint8, 16.0)
    assert found.latent.shape == (4, 2, 4, 6)
    np.testing.assert_array_equal(found.frames, generator.generate("a red star", seed=1, **SIZE).frames)
    for other in (("a red star", 2, None), ("the sea", 1, None), ("a red star", 1, "star")):
        prompt, seed, negative = other
        assert not np.array_equal(found.latent, generator.generate(prompt, seed=seed, negative=negative, **SIZE).latent)
    found.save(tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").stat().st_size > 500


def test_a_published_folder_makes_videos(folder: Path) -> None:
    parts, model = published_parts(folder), random_model("attention")
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    twin = WanTransformer3DModel(**arguments)
    twin.load_state_dict(model.state_dict())
    twin.save_pretrained(folder / "transformer")
    generator = WanGenerator.open(parts, dtype="float32")
    steps: list[tuple[int, int]] = []
    found = generator.generate("a red star", on_step=lambda *done: steps.append(done), **SIZE)
    assert steps == [(1, 2), (2, 2)]
    pieces = list(generator.stream(torch.from_numpy(found.latent)))
    assert [len(piece) for piece in pieces] == [1, 4]
    np.testing.assert_array_equal(np.concatenate(pieces), found.frames)


def test_what_cannot_be_generated_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder does not exist"):
        WanGenerator.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json of a Wan VAE"):
        WanGenerator.open(tmp_path)
    parts, model = published_parts(folder), random_model("mm_dim")
    generator = WanGenerator(model, open_wan_vae(parts), open_umt5(parts, dtype=torch.float32))
    with pytest.raises(InputError, match="ask for 5"):
        generator.generate("a red star", frames=8, height=32, width=48)
    with torch.no_grad():
        model.proj_out.bias.fill_(float("nan"))
    with pytest.raises(DataIntegrityError, match="not finite"):
        generator.generate("a red star", **SIZE)
