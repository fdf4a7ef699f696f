"""Stage `init` from imported weights: every architecture, what is taken over, what is refused in which words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import TEXT, publish, request

from m4v.checkpoint import load_checkpoint, read_config
from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.stage import StageContext
from m4v.model import build_model
from m4v.text.config import T5ClipConfig
from m4v.weights.catalogue import entry
from m4v.weights.convert import convert
from training.config import InitConfig, StartConfig
from training.stages import init

SIZES = {
    "width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 4, "latent_channels": 4,
    "text_dim": TEXT.embedding_dim, "pooled_dim": TEXT.pooled_dim, "text_slots": TEXT.slots,
}  # fmt: skip


def sizes(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(SIZES | changes)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Tensors of an attention model in the published keys, bfloat16 as such files often are."""
    generator = torch.Generator().manual_seed(1)
    shapes = build_model(sizes(mixer="attention"), 1).state_dict()
    return {k: torch.randn(v.shape, generator=generator).to(torch.bfloat16) for k, v in shapes.items()}


def weights_input(
    folder: Path, tensors: dict[str, torch.Tensor], **changes: object
) -> tuple[str, ArtifactKind, str, Path]:
    """The artifact that `m4v weights import` makes of a published transformer, here with tensors as given."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    config = CheckpointConfig(model=sizes(mixer="attention", **changes), schedule=ScheduleConfig())
    (folder / "config.json").write_text(json.dumps(config.canonical()))
    manifest = build_manifest(folder, ArtifactKind.WEIGHTS, {})
    write_manifest(folder, manifest)
    return "weights.dit", ArtifactKind.WEIGHTS, manifest.artifact_id, folder


def run(work: Path, tensors: dict[str, torch.Tensor], convert: str, **model: object) -> tuple[Path, str]:
    """Checkpoint folder of an init stage on `tensors`, and the id of the weights."""
    start = StartConfig.model_validate({"weights": "dit", "convert": convert})
    config = InitConfig(model=sizes(**model), text_encoder=TEXT, start=start)
    given = weights_input(work / "dit", tensors)
    context = StageContext(request("init", config, work / "run", [given]))
    init.run(context)
    context.progress.close()
    assert context.summaries()["checkpoint"]["weights"] == given[2]
    return publish(context)[1], given[2]


def test_attention_takes_every_tensor_as_it_is(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    directory, _ = run(tmp_path, published, "none", mixer="attention")
    model, config = load_checkpoint(directory.joinpath)
    state = model.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[key], value.float()) for key, value in published.items())
    assert config.weights == {}  # the packaged codec and text encoder need none


@pytest.mark.parametrize("mixer", ["mm_dim", "pre_half", "post_half", "interleaved", "parallel"])
def test_every_architecture_starts_from_attention(
    tmp_path: Path, published: dict[str, torch.Tensor], mixer: str
) -> None:
    directory, _ = run(tmp_path, published, "attention_to_mamba", mixer=mixer)
    model, _ = load_checkpoint(directory.joinpath)
    state = model.state_dict()
    fresh = build_model(sizes(mixer=mixer), 7).state_dict()
    for number in range(model.config.single_blocks):
        name = f"single_transformer_blocks.{number}"
        query = published[f"{name}.attn.to_q.weight"].float()
        kept, moved = f"{name}.attn.to_q.weight", f"{name}.mamba.to_c.weight"
        assert (kept in state) == ("attention" in model.config.mixers(number))
        assert (moved in state) == ("mm_dim" in model.config.mixers(number))
        assert kept not in state or torch.equal(state[kept], query)
        if moved in state:
            assert torch.equal(state[moved], query)
            assert torch.equal(state[f"{name}.mamba.A_log"], fresh[f"{name}.mamba.A_log"])
        assert torch.equal(state[f"{name}.proj_out.weight"], published[f"{name}.proj_out.weight"].float())


def test_one_start_has_the_same_bytes_twice(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    first, _ = run(tmp_path / "a", published, "attention_to_mamba")
    second, _ = run(tmp_path / "b", published, "attention_to_mamba")
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("width", 64, "set model.width to 32"),
        ("heads", 1, "set model.heads to 2"),
        ("double_blocks", 2, "set model.double_blocks to 1"),
        ("single_blocks", 3, "set model.single_blocks to 4"),
        ("latent_channels", 16, "set model.latent_channels to 4"),
        ("mlp_ratio", 2, "set model.mlp_ratio to 4"),
        ("rope_axes", [8, 4, 4], "set model.rope_axes to [4, 6, 6]"),
        ("use_temporal_causal", False, "set model.use_temporal_causal to true"),
    ],
)
def test_a_size_that_does_not_fit_names_both_values_and_the_fix(
    tmp_path: Path, published: dict[str, torch.Tensor], field: str, value: object, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, published, "attention_to_mamba", **{field: value})
    message = caught.value.message
    assert f"model.{field} does not fit the imported weights 'dit'" in message
    assert f": {tuple(value) if isinstance(value, list) else value} " in message
    assert fix in message
    assert "\n" not in message


@pytest.mark.parametrize("convert", ["none", "attention_to_mamba"])
def test_tensors_that_lack_or_do_not_belong_are_named(
    tmp_path: Path, published: dict[str, torch.Tensor], convert: str
) -> None:
    mixer = "attention" if convert == "none" else "mm_dim"
    missing = {k: v for k, v in published.items() if not k.endswith("blocks.2.attn.to_k.bias")}
    with pytest.raises(DataIntegrityError, match=r"single_transformer_blocks\.2\.attn\.to_k\.bias"):
        run(tmp_path / "missing", missing, convert, mixer=mixer)
    with pytest.raises(DataIntegrityError, match="pos_embed"):
        run(tmp_path / "more", published | {"pos_embed": torch.zeros(3)}, convert, mixer=mixer)
    other = published | {"proj_out.bias": torch.zeros(3, dtype=torch.bfloat16)}
    with pytest.raises(DataIntegrityError, match=r"proj_out\.bias.*\(3,\)"):
        run(tmp_path / "shape", other, convert, mixer=mixer)


def test_text_sizes_must_be_those_of_the_weights(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    given = weights_input(tmp_path / "dit", published, text_dim=4096)
    start = StartConfig(weights="dit", convert="attention_to_mamba")
    context = StageContext(
        request("init", InitConfig(model=sizes(), text_encoder=TEXT, start=start), tmp_path, [given])
    )
    with pytest.raises(ConfigError, match="which have 4096: 384 "):
        init.run(context)
    context.progress.close()


def test_a_truncated_file_and_a_missing_input_are_told(tmp_path: Path, published: dict[str, torch.Tensor]) -> None:
    given = weights_input(tmp_path / "dit", published)
    file = given[3] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    start = StartConfig(weights="dit", convert="attention_to_mamba")
    for inputs, kind, words in (([given], DataIntegrityError, "truncated"), ([], ConfigError, "no input of the stage")):
        config = InitConfig(model=sizes(), text_encoder=TEXT, start=start)
        context = StageContext(request("init", config, tmp_path / words, inputs))
        with pytest.raises(kind, match=words):
            init.run(context)
        context.progress.close()


def test_the_way_of_starting_must_lead_to_the_mixers() -> None:
    for mixer, way, words in (("mm_dim", "none", "set init.convert"), ("attention", "attention_to_mamba", "none")):
        start = StartConfig.model_validate({"weights": "dit", "convert": way})
        with pytest.raises(ValueError, match=words):
            InitConfig(model=sizes(mixer=mixer), text_encoder=TEXT, start=start)


def test_without_weights_the_seed_decides(tmp_path: Path) -> None:
    context = StageContext(request("init", InitConfig(model=sizes(), text_encoder=TEXT), tmp_path))
    init.run(context)
    context.progress.close()
    directory = publish(context)[1]
    state, expected = load_checkpoint(directory.joinpath)[0].state_dict(), build_model(sizes(), 7).state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert read_config(directory / "config.json").model == sizes()


def test_the_reference_s_weights_keep_their_numbers_on_the_way_to_a_checkpoint(
    tmp_path: Path, oracles: Path, oracle_close: Callable[..., None]
) -> None:
    """Published folder -> weights artifact -> init -> checkpoint, then the reference's own inputs and outputs."""
    tiny, folder = oracles / "pyramidflow/flux_tiny", tmp_path / "published/diffusion_transformer_768p"
    folder.mkdir(parents=True)
    shutil.copy(tiny / "state_dict.safetensors", folder / "diffusion_pytorch_model.safetensors")
    config = json.loads((tiny / "config.json").read_text()) | {"_class_name": "PyramidFluxTransformer"}
    (folder / "config.json").write_text(json.dumps(config))
    convert(entry("pyramidflow-dit-768p"), tmp_path / "published", tmp_path / "artifact")
    manifest = build_manifest(tmp_path / "artifact", ArtifactKind.WEIGHTS, {})
    write_manifest(tmp_path / "artifact", manifest)

    text = T5ClipConfig(weights="text", slots=6, embedding_dim=24, pooled_dim=20)
    model = ModelConfig(
        width=32, heads=2, double_blocks=2, single_blocks=2, latent_channels=4, text_dim=24, pooled_dim=20,
        text_slots=6, mixer="attention",
    )  # fmt: skip
    artifact = (ArtifactKind.WEIGHTS, manifest.artifact_id, tmp_path / "artifact")
    inputs = [("weights.dit", *artifact), ("weights.text", *artifact)]
    chosen = InitConfig(model=model, text_encoder=text, start=StartConfig(weights="dit"))
    context = StageContext(request("init", chosen, tmp_path, inputs))
    init.run(context)
    context.progress.close()
    loaded, checkpoint = load_checkpoint(publish(context)[1].joinpath)
    assert checkpoint.weights == {"text": manifest.artifact_id}
    case = load_file(tiny / "case_ar.safetensors")
    clips = [case[key] for key in sorted(case) if key.startswith("in.sample.0.")]
    with torch.no_grad():
        (out,) = loaded(
            [clips], case["in.timestep_ratio"], case["in.encoder_hidden_states"], case["in.encoder_attention_mask"],
            case["in.pooled_projections"],
        )  # fmt: skip
    oracle_close("flux_tiny/case_ar.safetensors", out, case["out.0"], atol=2e-5, rtol=1e-4)
