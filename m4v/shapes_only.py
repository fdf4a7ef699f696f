"""Models without values: shapes on the meta device, at no cost in memory or in imports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_NORMAL = (nn.init.normal_, nn.init.trunc_normal_, torch.Tensor.normal_)


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are where normal values would be drawn: on the meta device that imports torch's
    compiler, more than a second."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _NORMAL:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made inside have shapes and no values."""
    with torch.device("meta"), _NoDraws():
        yield


def give_memory(model: nn.Module) -> None:
    """Put every parameter and buffer on the CPU, unset; `nn.Module.to_empty` imports half a second of algebra first."""
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
