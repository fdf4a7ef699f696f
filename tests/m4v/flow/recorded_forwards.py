"""What a CUDA graph does, on the CPU: operators are noted with the memory that they read and write, and run again on
that memory. Nothing of Python runs again, and what is not in the tensors' places is not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m4v.flow.graphs import Recorded


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


def record(run: Callable[[], list[Tensor]]) -> Recorded:
    with _Notes() as notes:
        results = run()

    def replay() -> None:
        for func, args, kwargs, found in notes.calls:
            places = {u.untyped_storage().data_ptr() for u in tree_leaves((args, kwargs)) if isinstance(u, Tensor)}
            outs = [u for u in tree_leaves(found) if isinstance(u, Tensor)]
            shares = any(u.untyped_storage().data_ptr() in places for u in outs)
            if shares and not func._schema.is_mutable:
                continue  # a view
            again = [u for u in tree_leaves(func(*args, **kwargs)) if isinstance(u, Tensor)]
            if not shares:
                for old, new in zip(outs, again, strict=True):
                    old.copy_(new)

    return Recorded(results, replay)
