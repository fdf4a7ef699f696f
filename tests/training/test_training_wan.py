"""The Wan family in training: whole clips, estimates of the built model, conversion, resume after kills, hand-over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_bench import checkpoint, digest, make_bench
from training_helpers import TEXT, clips, publish, request, write_dataset

from m4v.config import CheckpointConfig, ModelConfig, ScheduleConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError
from m4v.core.rng import torch_seed
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import StageContext
from m4v.flops import formulas
from m4v.flow.latents import normalise
from m4v.wan.columns import WanColumns
from m4v.wan.config import WanCheckpointConfig, WanConfig, WanFlowConfig
from m4v.wan.flow import WanDraws
from m4v.wan.initialise import build_wan
from training.config import ConvertConfig, EngineConfig, InitConfig, OptimizerConfig, OrderConfig, TrainConfig
from training.families import family_of
from training.loader import Collator, SampleStore, Text
from training.objective import TIMESTEP_NAMES
from training.order import DataOrder
from training.preflight.memory import activation_bytes
from training.preflight.parameters import parameters_by_part
from training.preflight.work import PackWork, forward_flops
from training.samples import Samples
from training.stages import convert, init
from training.template import WHOLE, Column

TINY = WanConfig(
    width=32,
    heads=2,
    blocks=2,
    mlp_width=48,
    text_dim=384,
    text_slots=8,
    frequency_dim=16,
    rope_limit=32,
    chunk_size=16,
)
ORDER = OrderConfig(frames=17, min_frames=9, columns=(), tokens_per_pack=96, packs=2, image_every=2)
CONFIG = TrainConfig(
    name="17f", steps=5, order=ORDER, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2), save_every=2, ema_decay=0.9,
    engine=EngineConfig(zero_stage=3, param_persistence_elements=200, live_elements=100, checkpointing="block"),
)  # fmt: skip
START = InitConfig(model=TINY, schedule=WanFlowConfig(), text_encoder=TEXT)


def test_packs_are_whole_clips_of_equal_tokens(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", clips(5, 3))
    index = read_index(tmp_path / "d" / INDEX)
    order = DataOrder(Samples.of_index(index), ORDER, 5, "17f")
    video, image = (order.packs(step)[0] for step in (0, 2))
    assert (video.columns, image.columns) == ((Column(WHOLE, 3),), (Column(WHOLE, 1),))
    assert (len(video.draws), len(image.draws)) == (2, 6)  # 48 tokens a clip, 16 an image, 96 a pack
    null = load_file(tmp_path / "d" / "null_text.safetensors")
    made = family_of(WanCheckpointConfig(model=TINY, flow=WanFlowConfig(shift=3.0)))
    store = SampleStore((tmp_path / "d").joinpath, index)
    batch = Collator(
        store=store, packing=made, null_text=Text(*(null[key][0] for key in Text._fields)), seed=5, stage="17f",
        text_drop=0.0,
    )(video)  # fmt: skip
    seed = torch_seed(5, "draw", "17f", video.stream.name)
    draws = WanDraws.from_keys(WanFlowConfig(shift=3.0), seed, video.draws, (16, 3, 8, 8))
    clean = normalise(torch.stack([store.latent(*draw, seed, 3) for draw in video.draws]))
    (column,) = batch.columns
    level = draws.sigma.reshape(-1, 1, 1, 1, 1)
    assert torch.equal(column.clips[0], (1 - level) * clean + level * draws.noise)
    assert torch.equal(column.target, draws.noise - clean)
    assert torch.equal(column.timestep, draws.sigma * 1000)


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
def test_parameters_and_operations_are_the_built_models(mixer: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = WanConfig.model_validate(
        {"width": 128, "heads": 4, "blocks": 3, "mlp_width": 320, "text_dim": 48, "text_slots": 24, "mixer": mixer,
         "frequency_dim": 32, "chunk_size": 32}
    )  # fmt: skip
    model = WanColumns.of(build_wan(config, 1))
    assert sum(parameters_by_part(config).values()) == sum(p.numel() for p in model.parameters())
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    clip, text = torch.zeros(1, 16, 5, 16, 24), torch.ones(1, 24, 48)
    with torch.no_grad(), counter:
        model([[clip]], torch.ones(1), text, torch.ones(1, 24) > 0, torch.zeros(1, 0), [WHOLE])
    told = forward_flops(config, Column(WHOLE, 5), 16, 24)
    assert told == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_activations_are_what_autograd_keeps() -> None:
    config = WanConfig(width=128, heads=2, blocks=3, mlp_width=256, text_dim=32, text_slots=8, mixer="attention")
    model, held, alive = WanColumns.of(build_wan(config, 1)), dict[int, int](), []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model([[torch.zeros(1, 16, 4, 16, 16)]], torch.ones(1), torch.ones(1, 8, 32), torch.ones(1, 8) > 0,
              torch.zeros(1, 0), [WHOLE])  # fmt: skip
    told = activation_bytes(config, EngineConfig(dtype="float32"), PackWork(256, 8, 256, 0.0))
    assert told == pytest.approx(sum(held.values()), rel=0.12)


def test_a_family_refuses_what_is_of_the_other() -> None:
    with pytest.raises(ValueError, match=r"schedule of the pyramid family: set schedule\.kind to wan"):
        InitConfig(model=TINY, text_encoder=TEXT)
    with pytest.raises(ConfigError, match="whole clips"):
        family_of(WanCheckpointConfig(model=TINY)).check_order((0, 1, 1, 2), "stage")
    pyramid = family_of(CheckpointConfig(model=ModelConfig(), schedule=ScheduleConfig()))
    with pytest.raises(ConfigError, match="has a pyramid"):
        pyramid.check_order((), "stage")


def test_a_checkpoint_with_attention_becomes_one_with_mixers(tmp_path: Path) -> None:
    attention = START.model_copy(update={"model": TINY.model_copy(update={"mixer": "attention"})})
    begun = StageContext(request("init", attention, tmp_path / "init"))
    init.run(begun)
    begun.progress.close()
    artifact, folder = publish(begun)
    given = [("checkpoint", ArtifactKind.CHECKPOINT, artifact, folder)]
    context = StageContext(request("convert", ConvertConfig(model=TINY), tmp_path / "convert", given))
    convert.run(context)
    context.progress.close()
    made = load_file(context.output("checkpoint") / "model.safetensors")
    old = load_file(folder / "model.safetensors")
    for theirs, ours in (("to_q", "to_c"), ("to_k", "to_b"), ("to_v", "to_x")):
        assert torch.equal(made[f"blocks.1.attn1.mamba.{ours}.weight"], old[f"blocks.1.attn1.{theirs}.weight"])
    assert torch.equal(made["proj_out.weight"], old["proj_out.weight"])
    config = json.loads((context.output("checkpoint") / "config.json").read_bytes())
    assert (config["model"]["kind"], config["model"]["mixer"], config["flow"]["shift"]) == ("wan", "mm_dim", 5.0)


@pytest.mark.deep
def test_two_zero3_ranks_resume_bit_equal_after_kills_and_hand_over(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, START, CONFIG)
    straight = bench.run("straight")
    for attempt, fault in enumerate(("step:1", "half:2", "export")):
        assert not (bench.run("killed", attempt=attempt, fault=fault) / "result.json").exists(), fault
    assert digest(bench.run("killed", attempt=3)) == digest(straight)
    assert bench.line("killed") == bench.line("straight")
    rows = [json.loads(line) for line in (checkpoint(straight) / "metrics.jsonl").read_text().splitlines()]
    assert [row["media"] for row in rows] == ["video", "video", "image", "video", "video"]
    assert set(TIMESTEP_NAMES) <= set(rows[0])
    assert not {"loss_low", "loss_mid", "loss_high"} & set(rows[0])

    bench.inputs[1] = ("checkpoint", ArtifactKind.CHECKPOINT, digest(straight), checkpoint(straight))
    after = CONFIG.model_copy(update={"name": "next", "start_from": "ema", "steps": 2})
    last = bench.run("next", after)
    exposure = json.loads((checkpoint(last) / "training.json").read_bytes())
    assert (exposure["init_from"], exposure["order"]["columns"]) == (digest(straight), [])
    begun, ended = (
        load_file(checkpoint(straight) / "ema.safetensors"),
        load_file(checkpoint(last) / "model.safetensors"),
    )
    assert begun.keys() == ended.keys()
    assert any(not torch.equal(begun[name], ended[name]) for name in begun)
