"""The engine on one rank: activation checkpointing, gradient accumulation, parameter groups and types."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from m4v.config import ModelConfig, Recompute
from m4v.core.config import parse
from m4v.core.errors import ConfigError
from m4v.model import M4VTransformer, build_model
from m4v.model.mamba import FLOAT32_PARAMETERS
from training.config import EngineConfig, OptimizerConfig
from training.engine import (
    DeepSpeedEngine,
    Engine,
    deepspeed_config,
    init_process_group,
    open_engine,
    parameter_groups,
)

MODEL = ModelConfig(
    width=32, heads=2, double_blocks=1, single_blocks=2, text_dim=16, pooled_dim=8, text_slots=4, mlp_ratio=2
)
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=0)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    init_process_group(0, 1, 60)
    yield
    distributed.destroy_process_group()


def pack(number: int, rows: int = 2) -> tuple[Any, ...]:
    """Arguments of a forward pass of two columns, `rows` samples each, that depend on `number` alone."""
    g = torch.Generator().manual_seed(number)
    low = [torch.randn(rows, 16, 1, 4, 4, generator=g)]
    high = [torch.randn(rows, 16, 1, 8, 8, generator=g), torch.randn(rows, 16, 1, 8, 8, generator=g)]
    return (
        [low, high], torch.rand(2 * rows, generator=g) * 1000, torch.randn(2 * rows, 4, 16, generator=g),
        torch.ones(2 * rows, 4, dtype=torch.long), torch.randn(2 * rows, 8, generator=g), [0, 2],
    )  # fmt: skip


def loss_of(predictions: list[Tensor]) -> Tensor:
    return torch.stack([(p.float() - 1).square().mean() for p in predictions]).sum()


def drawn(config: ModelConfig = MODEL) -> M4VTransformer:
    """A model in which everything has a gradient: what starts at zero is drawn, too."""
    model = build_model(config, 3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return model


def gradients(model: M4VTransformer, recompute: Recompute) -> list[Tensor]:
    model.recompute, model.recompute_blocks = recompute, 2
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model(*pack(1))).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
def test_gradients_are_the_same_bits_whatever_is_kept(ssm: str) -> None:
    model = drawn(ModelConfig.model_validate({**MODEL.model_dump(), "ssm": ssm, "mixer": "parallel"}))
    kept = gradients(model, "none")
    assert len(kept) == len(list(model.parameters()))
    for recompute in ("selective", "block"):
        assert all(torch.equal(a, b) for a, b in zip(kept, gradients(model, recompute), strict=True))


def saved_bytes(model: M4VTransformer, recompute: Recompute) -> int:
    """Bytes that autograd holds between forward and backward, parameters left out."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack_hook(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    model.recompute, model.recompute_blocks = recompute, 2
    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda x: x):
        predictions = model(*pack(1))
    del predictions
    return sum(held.values())


def test_a_block_that_is_recomputed_keeps_less() -> None:
    model = build_model(MODEL, 3)
    assert saved_bytes(model, "block") < saved_bytes(model, "none") / 4


GATHERS = {"param_persistence_elements": 100, "live_elements": 100}
FSDP2 = {"backend": "fsdp2"}


def weights_after(
    zero: int, recompute: Recompute, dtype: str = "bfloat16", more: Mapping[str, int | str] = GATHERS
) -> dict[str, Tensor]:
    """Master weights after two steps of two packs, of which the second follows the first's update."""
    config = EngineConfig.model_validate({"zero_stage": zero, "checkpointing": recompute, "dtype": dtype, **more})
    engine = open_engine(drawn(), OPTIMIZER, config, 2)
    for step in range(2):
        for number in range(2):
            engine.backward(loss_of(engine(*pack(2 * step + number))))
        engine.step(1e-3)
    return {f.name: f.master.clone() for f in engine.fragments()}


@pytest.mark.parametrize("more", [GATHERS, {}, FSDP2], ids=["gathers", "whole", "fsdp2"])
def test_checkpointing_under_a_sharded_engine_changes_no_bit(more: Mapping[str, int | str]) -> None:
    kept = weights_after(3, "none", more=more)
    for recompute in ("selective", "block"):
        again = weights_after(3, recompute, more=more)
        assert kept.keys() == again.keys()
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_weights_that_stay_whole_are_the_same_bits() -> None:
    gathered, whole = weights_after(3, "selective"), weights_after(3, "selective", more={})
    assert gathered.keys() == whole.keys()
    assert all(torch.equal(gathered[name], whole[name]) for name in gathered)


@pytest.mark.parametrize("zero", [3, 2])
def test_fsdp2_takes_the_steps_of_deepspeed(zero: int) -> None:
    expected, found = weights_after(3, "selective"), weights_after(zero, "selective", more=FSDP2)
    assert expected.keys() == found.keys()
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("more", [{}, FSDP2, {**FSDP2, "zero_stage": 2}], ids=["deepspeed", "fsdp2-3", "fsdp2-2"])
def test_weights_survive_an_update_that_is_not_taken(more: Mapping[str, int | str]) -> None:
    """A gradient that is not finite, a norm that is not accepted, and a validation behind either."""
    config = EngineConfig.model_validate({"dtype": "bfloat16", **more})
    engine: Engine = open_engine(drawn(), OPTIMIZER, config, 1)
    before = [p.clone() for p in engine.evaluate(*pack(1))]
    for factor, accept in ((math.nan, math.isfinite), (1.0, lambda norm: False)):
        engine.backward(factor * loss_of(engine(*pack(0))))
        engine.step(1e-3, accept)
        assert all(torch.equal(a, b) for a, b in zip(before, engine.evaluate(*pack(1)), strict=True))
    engine.backward(loss_of(engine(*pack(0))))
    engine.step(1e-3)
    assert not any(torch.equal(a, b) for a, b in zip(before, engine.evaluate(*pack(1)), strict=True))


def test_a_closed_engine_holds_no_whole_weights() -> None:
    """After a roll-back another engine takes its place on the GPU, and DeepSpeed keeps the old model alive."""
    engine = DeepSpeedEngine(drawn(), OPTIMIZER, EngineConfig(dtype="bfloat16"), 1)
    engine.evaluate(*pack(1))
    assert engine._whole
    assert all(parameter.numel() == math.prod(parameter.ds_shape) for parameter in engine._whole)
    engine.close()
    assert not any(parameter.numel() for parameter in engine._whole)
    gathers = DeepSpeedEngine(drawn(), OPTIMIZER, EngineConfig(**GATHERS), 1)
    assert not gathers._whole


def test_a_closed_fsdp2_engine_holds_no_whole_weights() -> None:
    model = drawn()
    engine = open_engine(model, OPTIMIZER, EngineConfig.model_validate({**FSDP2, "zero_stage": 2}), 1)
    engine.evaluate(*pack(1))
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    engine.close()
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_fsdp2_has_two_stages_and_the_default_stands_in_no_canonical_form() -> None:
    assert "backend" not in EngineConfig().canonical()
    assert EngineConfig.model_validate(EngineConfig.model_validate(FSDP2).canonical()).backend == "fsdp2"
    of_deepspeed = {"live_elements": 7, "bucket_elements": 8, "overlap_comm": False, "param_persistence_elements": 9}
    same = [EngineConfig.model_validate({**FSDP2, **more}).canonical() for more in ({}, of_deepspeed)]
    assert same[0] == same[1], "settings without effect are in no key"
    assert EngineConfig.model_validate(of_deepspeed).canonical() != EngineConfig().canonical()
    for zero in (0, 1):
        with pytest.raises(ConfigError, match=f"no counterpart of zero_stage {zero}: set zero_stage to 3"):
            parse(EngineConfig, {**FSDP2, "zero_stage": zero}, "recipe")


@pytest.mark.parametrize("more", [{}, FSDP2], ids=["deepspeed", "fsdp2"])
def test_packs_accumulate_to_the_gradient_of_their_sum(more: Mapping[str, str]) -> None:
    """Two packs in one step move the weights as one loss over both of them does."""
    plain = drawn()
    groups = parameter_groups(plain, OPTIMIZER.weight_decay)
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.eps)
    for step in range(2):
        adam.zero_grad()
        torch.stack([loss_of(plain(*pack(2 * step + number))) for number in range(2)]).sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), OPTIMIZER.clip_norm)
        adam.step()
    found = weights_after(2, "none", "float32", {**GATHERS, **more})
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].view(parameter.shape), parameter.data, rtol=2e-5, atol=2e-6)


def test_masters_and_what_steers_the_recurrence_are_float32_under_autocast() -> None:
    config = EngineConfig(zero_stage=3, dtype="bfloat16")
    model = build_model(MODEL, 3)
    engine = DeepSpeedEngine(model, OPTIMIZER, config, 1)
    assert {f.master.dtype for f in engine.fragments()} == {torch.float32}
    travels = {name: getattr(p, "comm_dtype", torch.float32) for name, p in model.named_parameters()}
    exact = {name for name in travels if name.rpartition(".")[2] in FLOAT32_PARAMETERS}
    assert len(exact) == 3 * MODEL.single_blocks
    assert all(travels[name] == torch.float32 for name in exact)
    assert travels["single_transformer_blocks.0.mamba.to_x.weight"] == torch.bfloat16


def test_what_steers_the_recurrence_biases_and_norms_are_not_decayed() -> None:
    model = build_model(ModelConfig.model_validate({**MODEL.model_dump(), "ssm": "mamba1"}), 3)
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    ids = {id(p) for p in free["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in ids}
    assert all(n.endswith("bias") or "norm" in n or p.ndim == 1 or n.rpartition(".")[2] in FLOAT32_PARAMETERS
               for n, p in model.named_parameters() if n in names)  # fmt: skip
    assert "single_transformer_blocks.1.mamba.A_log" in names
    assert not any(n.endswith(("to_x.weight", "proj_out.weight")) for n in names)


def test_a_model_without_such_blocks_says_so() -> None:
    with pytest.raises(ConfigError, match="keep all activations"):
        DeepSpeedEngine(nn.Linear(2, 2), OPTIMIZER, EngineConfig(zero_stage=0, checkpointing="block"), 1)


def test_settings_of_deepspeed_are_explicit() -> None:
    made = deepspeed_config(OPTIMIZER, EngineConfig(live_elements=3000, bucket_elements=1), 2, 5000, "cuda")
    assert made["gradient_clipping"] == 1.0
    assert made["bf16"] == {"enabled": False, "check_grad_overflow": True}
    zero = made["zero_optimization"]
    assert (zero["overlap_comm"], zero["stage3_max_live_parameters"]) == (True, 3000)
    assert zero["stage3_param_persistence_threshold"] == EngineConfig().param_persistence_elements
    assert not deepspeed_config(OPTIMIZER, EngineConfig(), 2, 5000)["zero_optimization"]["overlap_comm"]
