"""torch's FSDP2 (`fully_shard`) behind the engine interface, to be compared with DeepSpeed.

Parameters, gradients and moments are float32 and lie in shards along the first axis, one group for each block of the
model and one for the rest. Autocast is torch's own, as DeepSpeed's is, and not FSDP2's `MixedPrecisionPolicy`: that
casts every parameter of a group, what steers the state-space recurrence (`FLOAT32_PARAMETERS`) too. So weights and
gradients travel as float32, where DeepSpeed sends those of `Linear` as bfloat16 unless they stay whole.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from training.config import EngineConfig, OptimizerConfig
from training.engine.interface import MOMENTS, Accept, Fragment
from training.engine.setup import CPU, checkpoint_activations, parameter_groups
from training.fixed_order import norm_of
from training.sharing import share_forward
from training.startup import plain_adamw

CLIP_EPS = 1e-6  # DeepSpeed's, and torch's


def shard_model(model: nn.Module, device: torch.device, gathers: bool) -> Any:
    """`model` as an FSDP2 module; its weights move to the device and into shards block by block. `gathers`: blocks let
    go of their whole weights after each pass, and gather them for the next."""
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated.*", category=FutureWarning)  # its own
    ranks: Any = distributed.group.WORLD
    mesh = DeviceMesh.from_group(ranks, device.type)
    lists = (child for child in model.children() if isinstance(child, nn.ModuleList))
    for module in (*(block for blocks in lists for block in blocks), model):
        part: Any = fully_shard(module, mesh=mesh, reshard_after_forward=gathers)
        # The caller's loss is weighted for a plain sum over ranks; FSDP2 would take the mean.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    return model


class Fsdp2Engine:
    """FSDP2 around a model whose weights are already loaded (equal on every rank). ZeRO stage 3: whole weights of a
    block are there for its passes alone, and each pack's gradient is divided among the ranks. Stage 2: weights stay
    whole from the first pass of a step to its last, as do gradients, which are divided once a step."""

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
        self._gathers, self._packs, self._pack = engine.zero_stage == 3, packs_per_rank, 0
        self._bfloat16, self._clip_norm = engine.dtype == "bfloat16", optimizer.clip_norm
        self._fixed_order = engine.fixed_order
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        checkpoint_activations(model, engine.checkpointing)
        share_forward(model, engine)
        self._model = shard_model(model, device, self._gathers)
        self._named: list[tuple[str, Any]] = list(self._model.named_parameters())
        self._shards = {name: _local(p) for name, p in self._named}  # empty where there are fewer rows than ranks
        self._adam = plain_adamw(
            list(self._groups(optimizer.weight_decay)), fused=device.type == "cuda",
            lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps,
        )  # fmt: skip
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
        self._pack += 1
        if not self._gathers:
            last = self._pack == self._packs
            self._model.set_requires_gradient_sync(last)
            self._model.set_reshard_after_backward(last)
        with self._autocast():
            predictions: list[Tensor] = self._model(columns, timesteps, text, text_mask, pooled, stages)
            return predictions

    def backward(self, loss: Tensor) -> None:
        # In a fixed order every rank has every pack, and only the first one's gradient counts.
        scaled: Any = loss * float(self.rank == 0) if self._fixed_order else loss
        scaled.backward()

    def evaluate(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int],
    ) -> list[Tensor]:
        self._model.eval()
        try:
            with torch.no_grad(), self._autocast():
                predictions: list[Tensor] = self._model(columns, timesteps, text, text_mask, pooled, stages)
                return predictions
        finally:
            self._model.train()

    def step(self, lr: float, accept: Accept = math.isfinite) -> float:
        self._pack = 0
        norm = self._gradient_norm()
        if math.isfinite(norm) and accept(norm):
            self._update(lr, norm)
        for _, p in self._named:
            p.grad = None
        return norm

    def fragments(self) -> list[Fragment]:
        return [
            Fragment(name, self.shapes[name], self._offset(name), shard.view(-1), self._moments(shard))
            for name, shard in self._shards.items()
            if shard.numel()
        ]

    def set_adam_step(self, steps: int) -> None:
        for state in self._adam.state.values():
            state["step"].fill_(steps)

    def close(self) -> None:
        """Let go of whole weights."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _autocast(self) -> torch.autocast:
        # Without its cache, which would keep a copy of every weight until the forward pass is over.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False)

    def _gradient_norm(self) -> float:
        """Of the whole gradient, over all parameters and ranks; a collective of all ranks."""
        gradients = [p.grad for _, p in self._named]
        if self._fixed_order:
            return float(norm_of((None if g is None else g.full_tensor() for g in gradients), self.device))
        own = [shard for g in gradients if g is not None and (shard := _local(g)).numel()]
        total = torch.nn.utils.get_total_norm(own).to(self.device, torch.float64).square()
        distributed.all_reduce(total)
        return float(total.sqrt())

    def _update(self, lr: float, norm: float) -> None:
        """Clip and let Adam update. A parameter without a gradient has a gradient of zero, as for DeepSpeed."""
        gradients = []
        for name, p in self._named:
            shard = self._shards[name]
            if shard.numel():
                shard.grad = torch.zeros_like(shard) if p.grad is None else _local(p.grad)
                gradients.append(shard.grad)
        if (share := self._clip_norm / (norm + CLIP_EPS)) < 1:
            torch._foreach_mul_(gradients, share)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        for shard in self._shards.values():
            shard.grad = None

    def _groups(self, weight_decay: float) -> Iterator[dict[str, Any]]:
        """The parameter groups, of this rank's shards."""
        names = {id(p): name for name, p in self._named}
        for group in parameter_groups(self._model, weight_decay):
            shards = (self._shards[names[id(p)]] for p in group["params"])
            if own := [shard for shard in shards if shard.numel()]:
                yield {**group, "params": own}

    def _prime_moments(self) -> None:
        """Create the Adam state that torch would create at the first step, so a resumed run can fill it."""
        for group in self._adam.param_groups:
            for shard in group["params"]:
                step = torch.zeros((), device=self.device if group["fused"] else CPU)
                self._adam.state[shard] = {"step": step, **{key: torch.zeros_like(shard) for key in MOMENTS}}

    def _moments(self, shard: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (self._adam.state[shard][key].view(-1) for key in MOMENTS)
        return first, second

    def _offset(self, name: str) -> int:
        """Place of this rank's first element: rows are dealt in equal runs, of which the last may be short or empty."""
        rows, *rest = self.shapes[name]
        return self.rank * -(-rows // self.world_size) * math.prod(rest)


def _local(x: DTensor) -> Tensor:
    """This rank's part of a sharded tensor, in its own memory."""
    with torch.no_grad():
        return x.to_local().detach()
