"""Folders of VAE weights: what is written, what is refused and with which words."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vae import TINY, tiny_vae, write_tiny_vae

from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.vae.config import VaeConfig, parse_vae_config, read_vae_config
from m4v.vae.initialise import build_vae
from m4v.vae.weights import CONFIG, WEIGHTS, expected_shapes, load_vae

KEY = "decoder.up_blocks.0.upsamplers.0.conv.conv.weight"


@pytest.fixture
def folder(tmp_path):
    return write_tiny_vae(tmp_path / "vae")


def _change(folder, change) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def test_round_trip(folder, tmp_path):
    loaded = load_vae(folder)
    assert loaded.config == TINY
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for (name, parameter), original in zip(loaded.named_parameters(), tiny_vae().parameters(), strict=True):
        assert torch.equal(parameter, original), name
    again = write_tiny_vae(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_half_precision(folder):
    vae = load_vae(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    exact, rounded = load_vae(folder).encode(video).mean, vae.encode(video).mean
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).std()) < 0.05 * float(exact.std())


def test_seeds_and_names_decide_initial_weights():
    first, again, other = (build_vae(TINY, seed).encoder for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv_in.conv.weight, other.conv_in.conv.weight)
    resnets = first.down_blocks[0].resnets
    assert not torch.equal(resnets[0].conv1.conv.weight, resnets[1].conv1.conv.weight)


def test_missing_tensor_is_named(folder):
    _change(folder, lambda state: state.pop(KEY))
    with pytest.raises(DataIntegrityError, match=rf"1 tensors are missing.*{KEY}"):
        load_vae(folder)


def test_unknown_tensor_is_named(folder):
    _change(folder, lambda state: state.update({"loss.discriminator.weight": torch.zeros(2)}))
    with pytest.raises(DataIntegrityError, match=r"1 tensors are not part.*loss\.discriminator\.weight"):
        load_vae(folder)


def test_misshapen_tensor_is_named_with_both_shapes(folder):
    _change(folder, lambda state: state.update({KEY: torch.zeros(2, 2)}))
    with pytest.raises(
        DataIntegrityError, match=rf"1 tensors have another shape.*{KEY}.*\(2, 2\).*\(64, 16, 3, 3, 3\)"
    ):
        load_vae(folder)


def test_integers_are_named(folder):
    _change(folder, lambda state: state.update({KEY: state[KEY].to(torch.int8)}))
    with pytest.raises(DataIntegrityError, match=rf"no floating-point numbers.*{KEY}"):
        load_vae(folder)


def test_truncated_file(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(
        DataIntegrityError, match=r"truncated.*diffusion_pytorch_model\.safetensors.*import the weights again"
    ):
        load_vae(folder)


def test_pickled_code_is_not_executed(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataIntegrityError, match="pickled file, which could run code"):
        load_vae(folder)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"no such file.*diffusion_pytorch_model\.safetensors.*m4v weights import"):
        load_vae(folder)
    assert not (tmp_path / "executed").exists()


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*config\.json.*nowhere"):
        load_vae(tmp_path / "nowhere")


def test_published_form_of_the_configuration(tmp_path):
    published = VaeConfig().canonical() | {"_class_name": "CausalVideoVAE", "_diffusers_version": "0.29.2"}
    assert parse_vae_config(published, "config.json") == VaeConfig()
    (tmp_path / CONFIG).write_text(json.dumps(published))
    assert read_vae_config(tmp_path / CONFIG) == VaeConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_act_fn": "gelu"}, "encoder_act_fn.*'gelu'"),
        ({"encoder_norm_groups": 8}, "unknown key encoder_norm_groups.*encoder_norm_num_groups"),
        ({"decoder_in_channels": 4}, "decoder_in_channels 4 must be encoder_out_channels 16"),
        ({"encoder_block_out_channels": [128, 256, 500, 512]}, "multiples of the 32 norm groups"),
        ({"decoder_temporal_up_sample": [True, True, False, False]}, "decoder_temporal_up_sample must be"),
        ({"encoder_block_dropout": [0.1, 0, 0, 0]}, "encoder_block_dropout must be 0"),
        ({"decoder_layers_per_block": [0, 3, 3, 3]}, "at least one layer"),
        ({"downsample_scale": 16}, "downsample_scale"),
    ],
)
def test_configurations_of_other_models_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_vae_config(VaeConfig().canonical() | change, "config.json")


def test_configuration_that_is_no_json_object(tmp_path):
    path = tmp_path / CONFIG
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="no JSON object"):
        read_vae_config(path)
    path.write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        read_vae_config(path)


def test_shapes_take_no_memory():
    shapes = expected_shapes(VaeConfig())
    assert shapes["encoder.conv_out.conv.weight"] == (32, 512, 3, 3, 3)
