"""Activation checkpointing of blocks: what a forward pass keeps for its backward pass, and what is computed again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from m4v.config import Recompute

T = TypeVar("T")
_ATEN = torch.ops.aten
# Dear to compute and small to keep: products with weights and attention. Norms, gates, activations, rotations and
# gathers are the other way round. The scans of kernel libraries are no operators of torch, so they run again.
_KEPT = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


def _policy(_: object, operator: object, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def run_block(block: Callable[..., T], recompute: Recompute, *arguments: object) -> T:
    """`block(*arguments)`; its backward pass finds what `recompute` keeps and computes the rest again.

    - `none` keeps everything, `block` only the arguments, `selective` the arguments and the results of matrix
      products and attention.

    The results and the gradients are the same bits in all three. Not re-entrant: hooks of sharded parameters run in
    the second forward pass as in the first.
    """
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*arguments)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if recompute == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    result: T = checkpoint(block, *arguments, **options)
    return result
