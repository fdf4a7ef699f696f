"""Estimates of a training stage held against the built model, real ranks and autograd's own bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m4v import flops
from m4v.config import ModelConfig, Recompute
from m4v.core.errors import ConfigError
from m4v.flow.packing import history_shape
from m4v.model import build_model, checkpointing
from training.config import EngineConfig, OrderConfig, TrainConfig
from training.preflight import Setup, check_fits, estimate, gpu_of
from training.preflight.anchors import UPDATE_S, slowness
from training.preflight.memory import _products, activation_bytes, memory_of
from training.preflight.parameters import parameters_by_part, total_parameters
from training.preflight.work import PackWork, forward_flops
from training.samples import SampleGroup
from training.template import Column, column_tokens

GROUPS = (SampleGroup("film", "video", 16, 96, 160, 10), SampleGroup("film", "image", 1, 96, 160, 10))
VARIANTS: list[dict[str, Any]] = [
    {}, {"mixer": "attention"}, {"ssm": "mamba1", "state_size": 16}, {"mixer": "parallel", "registers": False},
    {"mixer": "pre_half", "temporal_branch": False, "width": 256, "heads": 4, "mlp_ratio": 2, "conv_width": 3},
]  # fmt: skip


def setup(gpu: str = "h100-80gb", ranks: int = 8, tokens: int = 20_000, **engine: Any) -> Setup:
    train = TrainConfig(
        name="121f", steps=1000, order=OrderConfig(frames=121, tokens_per_pack=tokens, packs=64),
        engine=EngineConfig.model_validate({"zero_stage": 2, "dtype": "bfloat16", **engine}),
    )  # fmt: skip
    return Setup("train.121f", ModelConfig(), train, GROUPS, ranks, gpu_of(gpu))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_by_part_are_the_built_models(variant: dict[str, Any]) -> None:
    config = ModelConfig.model_validate(variant)
    model = flops.meta_model(config)
    assert parameters_by_part(config) == flops.parameters_by_part(model)
    assert total_parameters(config) == flops.total(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_of_the_built_model(variant: dict[str, Any]) -> None:
    small = {"width": 256, "heads": 4, "double_blocks": 2, "single_blocks": 2, "text_dim": 64, "text_slots": 16}
    config = ModelConfig.model_validate(small | variant)
    model = flops.meta_model(config)
    for unit, stage in ((3, 2), (1, 0)):
        counted = flops.count_forward(model, flops.Setting(unit, stage, 32, 32)).forward
        # The plain chunked scan pads its chunks and passes states by a product of its own.
        assert forward_flops(config, Column(stage, unit), 32, 32) == pytest.approx(counted, rel=0.06)


def forward(
    config: ModelConfig, columns: list[tuple[int, int]], side: int = 64, recompute: Recompute = "none"
) -> tuple[int, PackWork]:
    """Bytes that autograd keeps of a forward of the built model under autocast, and the pack."""
    model, held, alive = build_model(config, 1), dict[int, int](), []
    model.recompute, model.recompute_blocks = recompute, config.double_blocks + config.single_blocks
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(x)  # no other tensor may take its place meanwhile
        return x

    clips = [
        [torch.zeros(1, 16, n, side >> (2 - size), side >> (2 - size)) for size, n in history_shape(stage, unit)]
        + [torch.zeros(1, 16, 1, side >> (2 - stage), side >> (2 - stage))]
        for stage, unit in columns
    ]
    count = len(columns)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model(
            clips, torch.zeros(count), torch.zeros(count, config.text_slots, config.text_dim),
            torch.ones(count, config.text_slots), torch.zeros(count, config.pooled_dim), [s for s, _ in columns],
        )  # fmt: skip
    visual = sum(column_tokens(Column(s, u), side, side) for s, u in columns)
    return sum(held.values()), PackWork(visual, count * config.text_slots, 0, 0.0)


@pytest.mark.parametrize("mixer", ["attention", "mm_dim"])
def test_a_block_that_keeps_selectively_keeps_what_is_told(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of products and of attention, on the tapes of the built model's blocks."""
    config = ModelConfig(
        width=256, heads=4, double_blocks=1, single_blocks=1, text_dim=64, pooled_dim=64, text_slots=16, mixer=mixer
    )
    tapes: list[checkpointing.Tape] = []
    begin = checkpointing.Tape.begin

    def noted(tape: checkpointing.Tape, again: bool) -> None:
        tapes.append(tape)
        begin(tape, again)

    monkeypatch.setattr(checkpointing.Tape, "begin", noted)
    _, pack = forward(config, [(2, 3)], recompute="selective")
    pack = pack._replace(temporal=(3 - 1 + 4**2) * 64)
    kept = [sum(sizes(entry[0] for entry in tape._results if entry).values()) for tape in tapes]
    told = _products(config, pack, 2)
    assert len(kept) == 2
    assert 0.97 < told / sum(kept) < 1.0  # gates of the blocks, a row each, are not told


def sizes(results: Any) -> dict[int, int]:
    """Bytes of each tensor's memory in nested tuples."""
    found: dict[int, int] = {}
    for each in results:
        if isinstance(each, Tensor):
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif isinstance(each, tuple):
            found |= sizes(each)
    return found


def test_copies_of_weights_last_as_long_as_the_forward() -> None:
    """Of weights that stay; blocks that keep selectively have none."""
    model, small = ModelConfig(), PackWork(1000, 512, 100, 0.0)
    copies = 2 * total_parameters(model)

    def told(zero_stage: int, mode: Any, **engine: Any) -> int:
        chosen = EngineConfig(zero_stage=zero_stage, dtype="bfloat16", checkpointing=mode, **engine)
        return activation_bytes(model, chosen, small)

    kept = told(3, "none")
    assert told(2, "none") == pytest.approx(kept + copies, abs=2)
    assert told(3, "none", live_elements=3_000_000_000) == told(2, "none")
    assert told(2, "selective") == told(3, "selective")
    assert copies < told(2, "block") < copies + 0.2 * kept  # of a small pack more than the block computed again
    assert told(3, "block") < told(2, "block")


def test_activations_are_what_autograd_keeps() -> None:
    config = ModelConfig(
        width=256, heads=4, double_blocks=2, single_blocks=3, text_dim=64, pooled_dim=64, text_slots=16,
        mixer="attention",
    )  # fmt: skip
    kept, pack = forward(config, [(0, 3), (1, 2), (2, 3)])
    told = activation_bytes(config, EngineConfig(dtype="bfloat16"), pack)
    assert told == pytest.approx(kept, rel=0.12)  # copies of the weights in bfloat16 too
    modes = [activation_bytes(config, EngineConfig(dtype="bfloat16", checkpointing=m), pack)  # type: ignore[arg-type]
             for m in ("none", "selective", "block")]  # fmt: skip
    assert modes[0] > 1.3 * modes[1] > 1.3 * modes[2]


def test_memory_of_the_real_size_is_near_what_was_measured() -> None:
    """97.7 GiB on an H200: weights and gradients in bfloat16, one sample of 32,064 tokens, nothing recomputed, no
    optimiser. Autocast keeps norms in float32, so the estimate is higher, but by less than a half."""
    units, tokens = (31, 31, 31), 32_064
    temporal = sum((unit - 1 + 4**stage) * 240 for stage, unit in enumerate(units))
    pack = PackWork(tokens - 384, 384, temporal, 0.0)
    told = activation_bytes(ModelConfig(), EngineConfig(dtype="bfloat16"), pack)
    measured = 97.7 * 2**30 - 2 * 2 * total_parameters(ModelConfig())
    assert 1.0 < told / measured < 1.5


def test_zero_divides_what_it_says() -> None:
    model, pack = ModelConfig(), PackWork(1000, 512, 100, 0.0)
    count = total_parameters(model)
    by_stage = [memory_of(model, EngineConfig(zero_stage=z), True, 8, pack) for z in range(4)]
    assert [m.optimizer for m in by_stage] == [8 * count, count, count, count]
    assert [m.ema for m in by_stage] == [4 * count] + [count // 2] * 3
    assert [m.gradients for m in by_stage] == [4 * count, 4 * count, count, count // 2]
    assert [m.parameters for m in by_stage] == [4 * count, 4 * count + count // 2, 4 * count + count // 2, count]
    assert memory_of(model, EngineConfig(zero_stage=3), False, 8, pack).ema == 0


def test_fsdp2_holds_no_second_copy_of_its_shards() -> None:
    """As its third stage; the second has weights and gradients whole besides. A plan says that nobody measured it."""
    model, pack = ModelConfig(), PackWork(1000, 512, 100, 0.0)
    count = total_parameters(model)
    on = [EngineConfig(backend="fsdp2", zero_stage=zero, checkpointing="block") for zero in (3, 2)]
    sharded, whole = (memory_of(model, engine, True, 8, pack) for engine in on)
    assert (sharded.parameters, sharded.gradients) == (count // 2, count // 2)
    assert (whole.parameters, whole.gradients) == (4 * count + count // 2, 4 * count)
    assert sharded[2:5] == whole[2:5]
    assert sharded.total < memory_of(model, EngineConfig(checkpointing="block"), True, 8, pack).total
    found = estimate(setup(backend="fsdp2"))
    assert found is not None
    assert any(words.startswith("FSDP2 as DeepSpeed's ZeRO-2") for words in found.assumptions)
    assert found.engine == "FSDP2 as ZeRO-2"


def test_time_follows_operations_gpus_and_what_was_measured() -> None:
    one, eight = estimate(setup(ranks=1)), estimate(setup(ranks=8))
    assert one is not None and eight is not None  # noqa: PT018
    assert one.step_seconds is not None and one.gpu_hours is not None  # noqa: PT018
    # All but the update is divided among ranks; operations and launches of 64 packs.
    update = UPDATE_S * slowness(gpu_of("h100-80gb"))
    assert eight.step_seconds - update == pytest.approx((one.step_seconds - update) / 8)
    assert eight.gpu_hours == pytest.approx(8 * eight.step_seconds * 1000 / 3600)
    corrected = estimate(replace(setup(ranks=1), correction=1.5))
    assert corrected is not None
    assert corrected.step_seconds == pytest.approx(1.5 * one.step_seconds)
    assert any("corrected by 1.50" in words for words in corrected.assumptions)
    assert one.checkpoint_bytes == 8 * one.parameters
    assert eight.packs_per_rank == 8


def test_what_cannot_fit_is_refused_with_the_nearest_setting_that_does() -> None:
    assert check_fits(setup("h200", checkpointing="selective")) is not None
    with pytest.raises(ConfigError, match=r"does not fit a100-40gb.*activations") as refused:
        check_fits(setup("a100-40gb", ranks=64, checkpointing="none", zero_stage=2))
    assert str(refused.value.next_step).startswith("set engine.checkpointing: selective (")
    with pytest.raises(ConfigError) as refused:
        check_fits(setup("a100-40gb", ranks=8, zero_stage=0, tokens=10_000))
    assert "engine.zero_stage: 1 and engine.checkpointing" in str(refused.value.next_step)
    with pytest.raises(ConfigError) as refused:
        check_fits(setup("a100-40gb", ranks=1, zero_stage=3, checkpointing="block"))
    assert "take 2 GPUs" in str(refused.value.next_step)


def test_a_suggestion_fits() -> None:
    wanted = setup("a100-40gb", ranks=1, zero_stage=3, checkpointing="block")
    assert check_fits(replace(wanted, ranks=2)) is not None


def test_a_dataset_with_nothing_for_the_stage_has_no_estimate() -> None:
    short = replace(setup(), groups=(SampleGroup("film", "image", 1, 96, 160, 10),))
    config = short.train.model_copy(update={"order": OrderConfig(frames=121, image_every=0)})
    assert estimate(replace(short, train=config)) is None


def test_an_unknown_gpu_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match="no such GPU type") as refused:
        gpu_of("h100")
    assert "h100-80gb" in str(refused.value.next_step)
