"""DeepSpeed (ZeRO 0-3) behind the engine interface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.config import EngineConfig, OptimizerConfig
from training.engine.interface import MOMENTS, Accept, Fragment
from training.engine.setup import CPU, checkpoint_activations, parameter_groups
from training.fixed_order import check_fixed_order, fix_norm
from training.sharing import share_forward
from training.startup import deepspeed_module, initialise

BUCKET_ALIGNMENT = 1024


def deepspeed_config(
    optimizer: OptimizerConfig, engine: EngineConfig, packs_per_rank: int, elements: int, device: str = "cpu"
) -> dict[str, Any]:
    """Every setting whose default changed under 0.19, or that costs memory or time here, is explicit."""
    # A bucket is allocated whole, so it never exceeds the model; ZeRO-1/2 want it aligned.
    bucket = -(-min(engine.bucket_elements, elements) // BUCKET_ALIGNMENT) * BUCKET_ALIGNMENT
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "overlap_comm": engine.overlap_comm and device == "cuda",  # CPU ranks have no streams to overlap
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "round_robin_gradients": False,
    }
    if engine.zero_stage == 3:
        whole = engine.keeps_whole(elements)
        zero |= {
            "stage3_param_persistence_threshold": elements if whole else engine.param_persistence_elements,
            "memory_efficient_linear": not whole,  # a product of its own, for weights that are let go of meanwhile
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": max(bucket, min(engine.live_elements, elements)),
            "stage3_max_reuse_distance": max(bucket, min(engine.live_elements, elements)),
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": packs_per_rank,
        "gradient_clipping": optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # Not `bf16`, which would round every parameter: autocast leaves them in float32, and only those of these
        # modules travel as bfloat16. What steers the recurrence belongs to none of them and stays exact.
        "bf16": {"enabled": False, "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "torch_autocast": {
            "enabled": engine.dtype == "bfloat16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": ["torch.nn.Linear", "m4v.model.layers.Linear"],
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "checkpoint": {"load_universal": False, "tag_validation": "Fail"},
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
    }


def gather_by_block(model: nn.Module) -> None:
    """Let ZeRO-3 gather each block of the model as one: a tenth of the collectives and hooks, and no rank can
    run other submodules of a block than its peers."""
    deepspeed_module()
    from deepspeed.utils import set_z3_leaf_modules

    blocks = {type(block) for child in model.children() if isinstance(child, nn.ModuleList) for block in child}
    if blocks:
        set_z3_leaf_modules(model, list(blocks))


class DeepSpeedEngine:
    """ZeRO stage 0-3 around a model whose weights are already loaded (equal on every rank)."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        engine: EngineConfig,
        packs_per_rank: int,
        device: torch.device = CPU,
    ) -> None:
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.device = device
        self._stage, self._packs, self._pack = engine.zero_stage, packs_per_rank, 0
        self._named = list(model.named_parameters())
        self.shapes = {name: tuple(p.shape) for name, p in self._named}
        elements = sum(p.numel() for _, p in self._named)
        checkpoint_activations(model, engine.checkpointing)
        share_forward(model, engine)
        if self._stage == 3:
            gather_by_block(model)
        self._engine, self._zero, self._adam = initialise(
            model,
            parameter_groups(model, optimizer.weight_decay),
            deepspeed_config(optimizer, engine, packs_per_rank, elements, device.type),
            lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps,
        )  # fmt: skip
        self._whole: list[Any] = []  # parameters that stay whole between updates
        if engine.keeps_whole(elements):
            self._whole = [p for _, p in self._named]
            self._zero.parameter_offload.destroy()  # its hooks, which look after every tensor into and out of a block
        self._counts = 1.0
        if engine.fixed_order:
            check_fixed_order(self.world_size)
            self._counts = float(self.rank == 0)
            fix_norm(self._zero, self._stage, [p for _, p in self._named])
        self._prime_moments()

    def __call__(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]:
        self._gather()
        self._pack += 1
        self._engine.set_gradient_accumulation_boundary(self._pack == self._packs)
        predictions: list[Tensor] = self._engine(columns, timesteps, text, text_mask, pooled, stages)
        return predictions

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages over ranks and packs; the caller's loss is already weighted for a plain sum.
        self._engine.backward(loss * (self.world_size * self._packs * self._counts))

    def evaluate(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]:
        self._gather()
        self._engine.eval()
        try:
            with torch.no_grad():
                predictions: list[Tensor] = self._engine(columns, timesteps, text, text_mask, pooled, stages)
                return predictions
        finally:
            self._engine.train()

    def step(self, lr: float, accept: Accept = math.isfinite) -> float:
        for group in self._adam.param_groups:
            group["lr"] = lr
        norm = self._full_gradient_norm() if self._stage == 0 else math.nan
        # DeepSpeed knows the norm right before it lets Adam update, and has no other place to say no.
        self._adam.may_update = lambda: accept(norm if self._stage == 0 else float(self._zero._global_grad_norm))
        self._engine.step()
        self._pack = 0
        if self._stage == 0:
            return norm
        if self._zero.overflow:
            return math.inf
        return float(self._engine.get_global_grad_norm())

    def fragments(self) -> list[Fragment]:
        return [f for place, (name, p) in enumerate(self._named) for f in self._held(place, name, p)]

    def set_adam_step(self, steps: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(steps)

    def close(self) -> None:
        """Let go of whole weights: DeepSpeed keeps the model, also when another engine takes this one's place."""
        if self._whole:
            self._whole[0].partition(self._whole)

    def _gather(self) -> None:
        """Make what stays whole so where it is not: before the first pass, and after an update that was not taken."""
        if self._whole:
            self._whole[0].all_gather(self._whole)

    def _full_gradient_norm(self) -> float:
        grads = [p.grad for _, p in self._named if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _masters(self) -> list[Tensor]:
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        if self._stage > 0:
            return list(self._zero.single_partition_of_fp32_groups)
        return [p for _, p in self._named]

    def _prime_moments(self) -> None:
        """Create the Adam state that torch would create at the first step, so a resumed run can fill it."""
        for master in self._masters():
            self._adam.state[master] = {
                "step": torch.tensor(0.0),
                **{key: torch.zeros_like(master) for key in MOMENTS},
            }

    def _held(self, place: int, name: str, p: nn.Parameter) -> Iterator[Fragment]:
        if self._stage == 3:
            yield from self._held_by_zero3(name, p)
        elif self._stage > 0:
            yield from self._held_by_zero12(name, p)
        else:
            first, second = (self._adam.state[p][key].view(-1) for key in MOMENTS)
            primary = place % self.world_size == self.rank  # all ranks hold everything and save in turn
            yield Fragment(name, self.shapes[name], 0, p.data.view(-1), (first, second), primary)

    def _held_by_zero3(self, name: str, p: Any) -> Iterator[Fragment]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        part = int(p.partition_numel())
        offset, whole = self.rank * part, int(p.ds_numel)
        count = min(part, whole - offset)
        if count > 0:  # the last partitions may be padding only
            master = safe_get_local_fp32_param(p)[:count]
            first, second = (safe_get_local_optimizer_state(p, key)[:count] for key in MOMENTS)
            yield Fragment(name, self.shapes[name], offset, master, (first, second))

    def _held_by_zero12(self, name: str, p: Any) -> Iterator[Fragment]:
        mapping = p._hp_mapping
        if mapping is None:
            return
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        at = mapping.get_hp_fragment_address()
        first, second = (self._adam.state[flat][key].narrow(0, at.start, at.numel) for key in MOMENTS)
        master = flat.detach().narrow(0, at.start, at.numel)
        yield Fragment(name, self.shapes[name], mapping.lp_fragment_address.start, master, (first, second))
