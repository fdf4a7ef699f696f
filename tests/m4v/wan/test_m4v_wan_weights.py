"""Published folders of both layouts, conversion from attention, checkpoints; broken ones are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from wan_cases import config_of, contents, random_attention

from m4v.core.errors import ConfigError, DataIntegrityError, InputError, M4VError
from m4v.wan.config import wan_preset
from m4v.wan.initialise import empty_wan
from m4v.wan.keys import layout_of, to_diffusers, to_original
from m4v.wan.published import load_published, open_published
from m4v.wan.published_config import published_config

ORIGINAL_CONFIG = {
    "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 24, "eps": 1e-6, "ffn_dim": 40, "freq_dim": 16,
    "in_dim": 4, "model_type": "t2v", "num_heads": 2, "num_layers": 2, "out_dim": 4, "text_len": 5, "text_dim": 6,
}  # fmt: skip


def write_original(folder: Path, state: dict[str, Tensor], config: dict[str, object] = ORIGINAL_CONFIG) -> None:
    """As the original repository publishes the larger model: shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    named = {to_original(key): value for key, value in state.items()}
    names, weight_map = sorted(named), {}
    for number in range(3):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-00003.safetensors"
        part = names[number::3]
        save_file({name: named[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    write_original(folder, contents(random_attention()))
    return folder


def output(model: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    latents, text = torch.randn(2, 4, 2, 4, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)
    return model(latents, torch.tensor([4.0, 800.0]), text).sample


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_every_key_goes_to_the_original_name_and_back(name: str) -> None:
    keys = list(empty_wan(wan_preset(name, mixer="attention")).state_dict())
    originals = [to_original(key) for key in keys]
    assert [to_diffusers(key) for key in originals] == keys
    assert len(set(originals)) == len(keys)
    assert (layout_of(keys), layout_of(originals), layout_of(["x"])) == ("diffusers", "original", None)


def test_original_names_are_the_published_ones() -> None:
    """Names of one block and of what stands around the blocks, from the original repository's model definition."""
    keys = empty_wan(config_of(mixer="attention", blocks=1)).state_dict()
    linear = [
        "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
        "time_projection.1", "head.head", "blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.0.norm3",
        *(f"blocks.0.{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"),
    ]  # fmt: skip
    weights = [f"blocks.0.{kind}_attn.norm_{part}.weight" for kind in ("self", "cross") for part in "qk"]
    expected = {f"{name}.{leaf}" for name in linear for leaf in ("weight", "bias")}
    assert {to_original(key) for key in keys} == expected | set(weights) | {"blocks.0.modulation", "head.modulation"}


def test_diffusers_own_conversion_agrees() -> None:
    """diffusers reads original single files too: its reader and ours must give the same tensors."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = contents(random_attention())
    theirs = convert_wan_transformer_to_diffusers({to_original(key): value for key, value in state.items()})
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[key], state[key]) for key in state)


def test_original_folder_loads_equal_to_diffusers(original: Path) -> None:
    found = open_published(original)
    assert (found.layout, found.config) == ("original", config_of(mixer="attention", chunk_size=128))
    state, source = found.state(), contents(random_attention())
    assert state.keys() == source.keys()
    assert all(torch.equal(state[key], source[key]) for key in source)
    twin = WanTransformer3DModel(**{k: v for k, v in random_attention().config.items() if not k.startswith("_")})
    twin.load_state_dict(source)
    torch.testing.assert_close(output(load_published(original)), output(twin), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
@pytest.mark.parametrize("place", ["", "transformer"])
def test_folder_saved_by_diffusers_loads(tmp_path: Path, shard: str, place: str) -> None:
    model = random_attention()
    twin = WanTransformer3DModel(**{k: v for k, v in model.config.items() if not k.startswith("_")})
    twin.load_state_dict(model.state_dict())
    twin.save_pretrained(tmp_path / place, max_shard_size=shard)
    assert len(list((tmp_path / place).glob("*.safetensors"))) > (shard == "20KB")
    loaded = load_published(tmp_path)
    assert loaded.wan == config_of(mixer="attention", text_slots=512, chunk_size=128)
    torch.testing.assert_close(output(loaded), output(twin), atol=1e-5, rtol=0)


def test_half_precision_files_load_in_the_asked_type(tmp_path: Path) -> None:
    state = {key: value.bfloat16() for key, value in contents(random_attention()).items()}
    write_original(tmp_path, state)
    model = load_published(tmp_path, dtype=torch.bfloat16)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.blocks[0].scale_shift_table.dtype == torch.float32
    assert torch.equal(model.blocks[0].attn1.to_q.weight, state["blocks.0.attn1.to_q.weight"])


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None], number: int = 1) -> None:
    path = folder / f"diffusion_pytorch_model-{number:05d}-of-00003.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def reindex(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


FIRST = "blocks.0.cross_attn.k.bias"


def break_missing(folder: Path) -> None:
    rewrite(folder, lambda state: state.pop(FIRST))
    reindex(folder, lambda names: names.pop(FIRST))


def break_shape(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({FIRST: torch.zeros(7)}))


def break_unknown(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"blocks.0.self_attn.k_img.bias": torch.zeros(7)}))
    reindex(folder, lambda names: names.update({"blocks.0.self_attn.k_img.bias": names[FIRST]}))


def break_extra_block(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({"blocks.9.ffn.0.bias": torch.zeros(7)}))
    reindex(folder, lambda names: names.update({"blocks.9.ffn.0.bias": names[FIRST]}))


def break_truncated(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def break_absent(folder: Path) -> None:
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def break_index(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")


def break_path(folder: Path) -> None:
    reindex(folder, lambda names: names.update({FIRST: "../outside.safetensors"}))


def break_leftover(folder: Path) -> None:
    reindex(folder, lambda names: names.pop(FIRST))


def break_whole_numbers(folder: Path) -> None:
    rewrite(folder, lambda state: state.update({FIRST: torch.zeros(24, dtype=torch.int8)}))


def break_pickles(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "model.pth").write_bytes(b"cos\nsystem\n")


def break_no_index(folder: Path) -> None:
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_missing, "1 tensors are missing: ['blocks.0.attn2.to_k.bias']"),
        (break_shape, "blocks.0.attn2.to_k.bias: (7,), expected (24,)"),
        (break_unknown, "not part of Wan's text-to-video model: 'blocks.0.self_attn.k_img.bias'"),
        (break_extra_block, "1 tensors are not part of this model: ['blocks.9.ffn.net.0.proj.bias']"),
        (break_truncated, "truncated or not in safetensors"),
        (break_absent, "weight file is missing: 'diffusion_pytorch_model-00002-of-00003.safetensors'"),
        (break_index, "needs a weight_map"),
        (break_path, "'../outside.safetensors'"),
        (break_leftover, f"has tensors that the index leaves out: ['{FIRST}']"),
        (break_whole_numbers, f"tensor {FIRST} is quantised or of whole numbers: 'I8'"),
        (break_pickles, "weights are pickled, which can run code: ['model.pth']"),
        (break_no_index, "several weight files and no index"),
    ],
)
def test_broken_folders_are_refused_by_name(original: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(original)
    with pytest.raises(M4VError) as caught:
        open_published(original)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "i2v"}, "model_type is not that of Wan2.1's text-to-video model (t2v): 'i2v'"),
        ({"in_dim": 36}, "out_dim differs from the 36 input channels: 4"),
        ({"patch_size": [1, 4, 4]}, "patch_size is not"),
        ({"dim": "wide"}, "config is not valid: dim: Input should be a valid integer"),
        ({"num_heads": 5}, "width 24 must be an even multiple of heads 5"),
        ({"num_layers": 0}, "config is not valid: num_layers: Input should be greater than or equal to 1: 0"),
        ({"num_head": 2}, "config has a key that is not Wan2.1's: 'num_head'"),
        ({"_class_name": "FluxTransformer2DModel"}, "config is of another model"),
    ],
)
def test_configs_of_other_models_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(DataIntegrityError) as caught:
        published_config(ORIGINAL_CONFIG | change, "config.json")
    assert words in caught.value.message


def test_diffusers_sizes_must_be_numbers() -> None:
    data = {"attention_head_dim": "128", "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    with pytest.raises(DataIntegrityError, match="attention_head_dim is no whole number: '128'"):
        published_config(data, "config.json")


def test_a_config_without_a_size_is_refused() -> None:
    data = {key: value for key, value in ORIGINAL_CONFIG.items() if key != "ffn_dim"}
    with pytest.raises(DataIntegrityError, match=r"config lacks a size: \['ffn_dim'\]"):
        published_config(data, "config.json")


@pytest.mark.parametrize("name", ["1.3B", "14B"])
def test_published_configs_are_the_presets(name: str) -> None:
    expected = wan_preset(name, mixer="attention")
    theirs = {
        "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": None,
        "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": expected.mlp_width,
        "freq_dim": 256, "image_dim": None, "in_channels": 16, "num_attention_heads": expected.heads,
        "num_layers": expected.blocks, "out_channels": 16, "patch_size": [1, 2, 2],
        "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
    }  # fmt: skip
    original = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": expected.width, "eps": 1e-06,
        "ffn_dim": expected.mlp_width, "freq_dim": 256, "in_dim": 16, "model_type": "t2v",
        "num_heads": expected.heads, "num_layers": expected.blocks, "out_dim": 16, "text_len": 512,
    }  # fmt: skip
    assert published_config(theirs, "a") == expected == published_config(original, "b")


def test_unknown_presets_and_fields_name_their_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"unknown Wan preset: '1.3b'. Next: did you mean 1.3B"):
        wan_preset("1.3b")
    with pytest.raises(ConfigError, match="did you mean text_recomposition"):
        wan_preset("14B", text_recompostion=False)
    with pytest.raises(ConfigError, match=r"^ssd keeps C and B at the width, so state_size must be 128 \(in"):
        wan_preset("14B", state_size=64)


def test_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_published(tmp_path)
