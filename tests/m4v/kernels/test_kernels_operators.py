"""Operators called at once and through torch's library: the same bits, and who gets which."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from m4v.kernels.operators import operator


@operator("m4v_tests::combine")
def combine(x: Tensor, others: list[Tensor], masks: list[Tensor], scale: Tensor | None, factor: float) -> list[Tensor]:
    """Two results; the second one is for the gradient only."""
    total = x * factor
    for other, mask in zip(others, masks, strict=True):
        total = total + other * mask
    return [total.clone() if scale is None else total * scale, total]


@combine.register_fake
def _(x: Tensor, others: list[Tensor], masks: list[Tensor], scale: Tensor | None, factor: float) -> list[Tensor]:
    return [torch.empty_like(x), torch.empty_like(x)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, _, masks, scale, ctx.factor = inputs
    ctx.count = len(masks)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(scale, output[1], *masks)


def _back(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    scale, total, *masks = ctx.saved_tensors
    grad = grads[0] if scale is None else grads[0] * scale
    of_scale = None if scale is None else (grads[0] * total).sum()
    return grad * ctx.factor, [grad * mask for mask in masks], [None] * ctx.count, of_scale, None


combine.register_autograd(_back, setup_context=_keep)


class Seen(TorchDispatchMode):
    """Names of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def given(count: int, scaled: bool) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(count)
    x, *others = (torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(count + 1))
    masks = [torch.rand(3, 4, generator=generator) < 0.5 for _ in range(count)]
    return x, others, masks, torch.tensor(1.7, requires_grad=True) if scaled else None, 0.3


def results(call: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    x, others, _, scale, _ = arguments
    out, rest = call(*arguments)
    leaves = [u for u in (x, *others, scale) if u is not None]
    assert not rest.requires_grad
    return [out, rest, *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, 12).view(3, 4))]


def entered(call: Any, arguments: tuple[Any, ...]) -> int:
    """How often the library's operator ran."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        results(call, arguments)
    return sum(event.count for event in recorded.key_averages() if event.key == "m4v_tests::combine")


def test_both_ways_give_the_same_bits() -> None:
    for count in (0, 1, 2):
        for scaled in (False, True):
            arguments = given(count, scaled)
            found, expected = (results(call, arguments) for call in (combine, combine.library))
            assert len(found) == len(expected) == 3 + count + scaled
            assert all(map(torch.equal, found, expected))
    with torch.no_grad():
        assert not combine(*given(2, True))[0].requires_grad


def test_the_library_is_entered_only_where_somebody_watches() -> None:
    arguments = given(2, True)
    assert entered(combine, arguments) == 0
    assert entered(combine.library, arguments) > 0

    with Seen() as seen:
        results(combine, arguments)
    assert "m4v_tests::combine" in seen.names
    mode = FakeTensorMode()
    fake = [mode.from_tensor(u.detach()) for u in (arguments[0], *arguments[1], *arguments[2])]
    assert combine(fake[0], fake[1:3], fake[3:], None, 1.0)[0].shape == (3, 4)


def test_compiled_whole() -> None:
    arguments = given(2, True)
    compiled = torch.compile(lambda *u: combine(*u)[0], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), combine(*arguments)[0])
    compiled(*arguments).sum().backward()
    expected = torch.autograd.grad(combine(*arguments)[0].sum(), [arguments[0], *arguments[1], arguments[3]])
    for leaf, value in zip([arguments[0], *arguments[1], arguments[3]], expected, strict=True):
        torch.testing.assert_close(leaf.grad, value)


def test_a_kept_result_is_not_computed_again() -> None:
    """Its gradients are those of the call that computed it, also where a mode watches one of the passes."""
    arguments, kept = given(1, True), []

    def keep(compute: Any, kind: object) -> Any:
        assert kind == "m4v_tests::combine"
        if not kept:
            kept.append([u.detach() for u in compute()])
        return kept[0]

    expected = results(combine, arguments)
    for _ in range(2):
        found = results(lambda *given: combine.kept(keep, *given), arguments)
        assert all(map(torch.equal, expected, found))
        assert found[0].data_ptr() == kept[0][0].data_ptr()
    with Seen() as seen:
        found = results(lambda *given: combine.kept(keep, *given), arguments)
    assert all(map(torch.equal, expected, found))
    assert found[0].data_ptr() == kept[0][0].data_ptr()
    assert "m4v_tests::combine" not in seen.names
    kept.clear()
    with Seen() as seen:
        assert all(map(torch.equal, expected, results(lambda *given: combine.kept(keep, *given), arguments)))
    assert seen.names.count("m4v_tests::combine") == len(kept) == 1
    with torch.no_grad():
        assert combine.kept(keep, *arguments)[0].data_ptr() != kept[0][0].data_ptr()
