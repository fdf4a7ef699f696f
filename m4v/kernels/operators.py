# mypy: disable-error-code="no-untyped-call, untyped-decorator"
"""Operators of torch's library that are quick to call.

Torch's own way to an operator written in Python takes longer than most of our kernels run. Where nothing watches
(neither a compiler nor a dispatch mode nor a kind of tensor of its own) the function behind the operator is called
at once, under one autograd function: the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Result = TypeVar("Result")
Keep = Callable[[Callable[[], Any], object], Any]
_PLAIN = (Tensor, nn.Parameter)


class Operator(Generic[Result]):
    """A function on tensors and its operator `library`. Arguments are given by place; a list of results may come as a
    tuple."""

    def __init__(self, name: str, compute: Callable[..., Result]) -> None:
        self.name, self.compute = name, compute
        self.library = torch.library.custom_op(name, compute, mutates_args=())
        self._direct: Callable[..., Result] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """As of `torch.library`."""
        return self.library.register_fake(fake)

    def register_autograd(self, back: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As of `torch.library`."""
        self.library.register_autograd(back, setup_context=setup_context)
        name, compute, library = self.name, self.compute, self.library

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, keep: Keep | None, counts: Sequence[int | None], *flat: Any) -> Any:
                ctx.counts, given = counts, _nested(counts, flat)
                # A mode that counts operators sees the one whose result is kept, too.
                make = library if is_in_torch_dispatch_mode() else compute
                found = make(*given) if keep is None else keep(lambda: make(*given), name)
                setup_context(ctx, given, found)
                ctx.listed = isinstance(found, list)
                return tuple(found) if isinstance(found, list) else found

            @staticmethod
            @once_differentiable
            def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
                found: list[Tensor | None] = [None, None]
                slopes = back(ctx, *([list(grads)] if ctx.listed else grads))
                slopes = slopes if isinstance(slopes, tuple) else (slopes,)
                for count, u in zip(ctx.counts, slopes, strict=True):
                    found += [u] if count is None else u or [None] * count
                return tuple(found)

        self._direct = Direct.apply

    def __call__(self, *given: Any) -> Result:
        return self.kept(None, *given)

    def kept(self, keep: Keep | None, *given: Any) -> Result:
        """The operator, its result through `keep` where a gradient is wanted: given what computes it and the operator's
        name, it may answer with what that gave before. A dispatch mode changes nothing in that: it may be on in one
        pass alone."""
        if torch.compiler.is_compiling() or (keep is None and is_in_torch_dispatch_mode()):
            return self.library(*given)  # type: ignore[no-any-return]
        counts, flat = _flat(given)
        tensors = [u for u in flat if isinstance(u, Tensor)]
        if any(type(u) not in _PLAIN for u in tensors):
            return self.library(*given)  # type: ignore[no-any-return]
        if self._direct is not None and torch.is_grad_enabled() and any(u.requires_grad for u in tensors):
            return self._direct(keep, counts, *flat)
        return self.compute(*given)


def _flat(given: Sequence[Any]) -> tuple[list[int | None], list[Any]]:
    """The arguments, lists of tensors taken apart: autograd follows those alone that stand by themselves. With the
    length of each such list, None for another argument."""
    counts: list[int | None] = []
    flat: list[Any] = []
    for u in given:
        listed = isinstance(u, list) and all(isinstance(one, Tensor) for one in u)
        counts.append(len(u) if listed else None)
        flat += u if listed else [u]
    return counts, flat


def _nested(counts: Sequence[int | None], flat: Sequence[Any]) -> tuple[Any, ...]:
    """Inverse of `_flat`."""
    rest = iter(flat)
    return tuple(next(rest) if count is None else [next(rest) for _ in range(count)] for count in counts)


def operator(name: str) -> Callable[[Callable[..., Result]], Operator[Result]]:
    """Makes an `Operator` of a function that changes no argument and returns none of them."""
    return lambda compute: Operator(name, compute)
