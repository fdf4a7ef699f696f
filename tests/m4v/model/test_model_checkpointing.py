"""Selective recomputation: what a second forward pass finds again, computes anew, and refuses."""

from __future__ import annotations

import functools
import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from m4v.config import ModelConfig, Recompute
from m4v.kernels.frames import OPERATOR, FrameShape, attend_frames
from m4v.model import M4VTransformer, build_model, transformer
from m4v.model.checkpointing import Pass, Tape, current_tape, keeping_attention, run_block
from m4v.model.layers import Linear

MODEL = ModelConfig.model_validate(
    {"width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 2, "mixer": "parallel", "latent_channels": 4,
     "text_dim": 8, "pooled_dim": 6, "text_slots": 4, "chunk_size": 8}
)  # fmt: skip
ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu.default


class Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func] += 1
        return func(*args, **(kwargs or {}))


class Small(nn.Module):
    """Products, attention and what lies between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = Linear(8, 24), Linear(8, 8, bias=False), Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, dim=-1)
        with keeping_attention():
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(F.silu(self.second(mixed)) * x) + x


def gradients(run: Callable[[Small, Tensor], Tensor], backward: Callable[[Tensor], None] = Tensor.backward) -> Any:
    block = Small()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    backward(run(block, x).square().sum())
    return [x.grad, *(p.grad for p in block.parameters())]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def selective(block: Callable[..., Tensor], x: Tensor) -> Tensor:
    return run_block(block, "selective", x)


def in_a_thread(loss: Tensor) -> None:
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


def twice(loss: Tensor) -> None:
    (loss / 2).backward(retain_graph=True)
    (loss / 2).backward()


def nested(block: Small, x: Tensor) -> Tensor:
    return run_block(lambda y: selective(block, y), "selective", x)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize(
    ("run", "backward"),
    [(selective, Tensor.backward), (selective, in_a_thread), (selective, twice), (nested, Tensor.backward)],
)
def test_gradients_are_those_of_a_block_that_keeps_all(run: Any, backward: Any, lowered: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        assert same(gradients(lambda block, x: block(x), backward), gradients(run, backward))
        with set_checkpoint_early_stop(False):
            assert same(gradients(lambda block, x: block(x), backward), gradients(run, backward))


@contextmanager
def sums_in_float32() -> Iterator[None]:
    """The CPU's autocast sums in float32, as CUDA's does; where a backward pass runs in it, its own sums, too."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")

    def total(x: Tensor, dim: list[int], keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            found: Tensor = ATEN.sum.dim_IntList(x, dim, keepdim, dtype=dtype or torch.float32)
        return found

    library.impl("sum.dim_IntList", total)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.ones(2, 2, dtype=torch.bfloat16).sum(dim=0).dtype == torch.float32
            yield
    finally:
        library._destroy()


def test_gradients_of_biases_are_rounded_where_a_backward_pass_is_under_autocast() -> None:
    with sums_in_float32():
        assert same(gradients(lambda block, x: block(x)), gradients(selective))


def test_frozen_weights_get_no_gradient() -> None:
    block, x = Small(), torch.randn(1, 3, 8, requires_grad=True)
    block.first.requires_grad_(False)
    selective(block, x).sum().backward()
    assert block.first.weight.grad is None
    assert x.grad is not None
    assert block.last.weight.grad is not None


def test_a_kept_result_that_changed_is_refused() -> None:
    layer, x = Linear(4, 4), torch.randn(2, 4, requires_grad=True)
    loss = run_block(lambda y: layer(y).add_(1).mul(y), "selective", x).sum()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_second_pass_that_asks_for_more_is_refused() -> None:
    tape = Tape()
    tape.result(lambda: torch.zeros(1), "one")
    tape.begin(again=True)
    tape.result(lambda: torch.zeros(1), "one")
    with pytest.raises(RuntimeError, match="asks for result 2 of 1"):
        tape.result(lambda: torch.zeros(1), "one")


def test_a_second_pass_that_leaves_a_result_out_is_refused() -> None:
    """A later operation would be given another's result."""
    block, passes = Small(), []

    def changing(x: Tensor) -> Tensor:
        passes.append(None)
        if len(passes) > 1:
            layer = block.first
            layer.forward = lambda u: F.linear(u, layer.weight, layer.bias)  # type: ignore[method-assign]
        return block(x)

    loss = selective(changing, torch.randn(2, 5, 8, requires_grad=True)).sum()
    with pytest.raises(RuntimeError, match=r"result 1 of a block is of .*24, 8.* asks for"):
        loss.backward()


def test_a_whole_second_pass_takes_all_results() -> None:
    tape = Tape()
    with Pass(tape, again=False):
        for _ in range(2):
            tape.result(lambda: torch.zeros(1), "one")
    with pytest.raises(RuntimeError, match="asked for 1 of 2 results"), Pass(tape, again=True):
        tape.result(lambda: torch.zeros(1), "one")
    assert current_tape() is None
    with pytest.raises(KeyError, match="stopped early"), Pass(tape, again=True):
        raise KeyError("stopped early")


def inputs() -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    low = [torch.randn(1, 4, 2, 4, 4, generator=g)]
    high = [torch.randn(1, 4, 1, 4, 4, generator=g), torch.randn(1, 4, 1, 8, 8, generator=g)]
    text = torch.randn(2, 4, 8, generator=g), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    return [low, high], torch.full((2,), 500.0), *text, torch.randn(2, 6, generator=g), [0, 1]


def loss_of(model: M4VTransformer, recompute: Recompute, given: tuple[Any, ...]) -> Tensor:
    model.recompute, model.recompute_blocks = recompute, 2
    with torch.autocast("cpu", torch.bfloat16):
        return torch.stack([p.float().square().mean() for p in model(*given)]).sum()


def test_second_passes_of_a_model_repeat_no_product_and_no_attention() -> None:
    model, given = build_model(MODEL, 3), inputs()
    found = {}
    for recompute in ("block", "selective"):
        loss = loss_of(model, recompute, given)
        with Calls() as calls:
            loss.backward()
        found[recompute] = calls.found
    assert found["block"][ATEN.addmm.default] > 20
    assert found["block"][ATTENTION] >= 8
    assert found["selective"][ATEN.addmm.default] == found["selective"][ATTENTION] == 0
    assert found["selective"].total() < found["block"].total()


def test_our_own_attention_is_kept_as_an_operator() -> None:
    shape = FrameShape([2, 3], [2], 2, torch.zeros(1, 2, dtype=torch.uint8))
    layer = Linear(8, 24)

    def block(x: Tensor) -> Tensor:
        q, k, v = layer(x).unflatten(-1, (2, 12)).chunk(3, dim=-1)
        with keeping_attention():
            return attend_frames(q, k, v, shape).square()

    found = []
    for recompute in ("none", "selective"):
        layer.zero_grad()
        x = torch.ones(1, 7, 8).cumsum(dim=1).requires_grad_()
        loss = run_block(block, recompute, x).sum()
        with Calls() as calls:
            loss.backward()
        found.append([x.grad, layer.weight.grad, layer.bias.grad])
        assert calls.found[OPERATOR] == 0
        assert calls.found[torch.ops.m4v.frame_attention_backward.default] == 1
    assert same(*found)


def by_torch(block: Callable[..., Any], _: Recompute, *arguments: object) -> Any:
    """Torch's own selection of the same operators."""
    dear = {ATEN.mm.default, ATEN.addmm.default, ATTENTION}

    def policy(_: object, operator: object, *a: object, **o: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in dear else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=contexts)


def bytes_held(model: M4VTransformer, recompute: Recompute, given: tuple[Any, ...]) -> int:
    """What a forward pass leaves behind for its backward pass, where Python sees it."""

    def seen() -> dict[int, int]:
        gc.collect()
        found = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
        tensors = [x for x in found if x.layout == torch.strided and x.device.type == "cpu"]
        return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}

    before = seen()
    loss = loss_of(model, recompute, given)
    after = seen()
    del loss
    return sum(size for place, size in after.items() if place not in before)


def test_no_more_is_held_than_by_the_selection_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build_model(MODEL, 3), inputs()
    reference = loss_of(model, "selective", given)  # tables are made
    held = bytes_held(model, "selective", given)
    reference.backward()
    own = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    monkeypatch.setattr(transformer, "run_block", by_torch)
    assert 10_000 < held <= bytes_held(model, "selective", given)
    loss = loss_of(model, "selective", given)
    assert torch.equal(loss, reference)
    loss.backward()
    assert same(own, [p.grad for p in model.parameters() if p.grad is not None])


def test_a_pass_left_late_takes_no_other_pass_with_it() -> None:
    left_late, running = Pass(Tape(), again=False), Pass(Tape(), again=False)
    left_late.__enter__()
    with running:
        inner = current_tape()
        left_late.__exit__(None)
        assert current_tape() is inner is not None
    assert current_tape() is None
