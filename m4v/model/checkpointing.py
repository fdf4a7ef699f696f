"""Activation checkpointing of blocks: what a forward pass keeps for its backward pass, and what is computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from m4v.config import Recompute

T = TypeVar("T")
_ATEN = torch.ops.aten
_ATTENTION = frozenset(
    {
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
_OWN_ATTENTION = ("m4v", "m4v::frame_attention")  # registered where its kernels are, which need not be here


class Tape:
    """Results of the dear operations of one block, in the order of its first forward pass; the second one takes them
    back instead of computing them."""

    def __init__(self) -> None:
        self._results: list[tuple[Any, int] | None] = []
        self._kinds: list[object] = []
        self._taken: int | None = None  # None: first pass
        self._lowered: tuple[Tensor, int, Tensor] | None = None

    def begin(self, again: bool) -> None:
        """Start the first pass, or the second `again`."""
        self._taken = 0 if again else None

    def end(self, complete: bool = False) -> None:
        """Let go of what only a running pass needs. Raises RuntimeError when a `complete` second pass, one that was not
        stopped early, left out results of the first."""
        self._lowered = None
        if complete and self._taken is not None and self._taken < len(self._results):
            count = len(self._results)
            raise RuntimeError(f"the second forward pass of a block asked for {self._taken} of {count} results")

    def lowered(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x.to(dtype)`; products in a row with the same factor share one copy."""
        last = self._lowered
        if last is not None and last[0] is x and last[1] == x._version and last[2].dtype == dtype:
            return last[2]
        found = x.to(dtype)
        self._lowered = None if found is x else (x, x._version, found)
        return found

    def result(self, compute: Callable[[], Any], kind: object) -> Any:
        """What `compute` gives, a tensor or a tuple with tensors; the second pass calls it only for a result that an
        earlier second pass took (a backward pass through a graph that was retained). `kind`: what tells operations
        apart, by equality. Raises RuntimeError when a result was changed in place meanwhile, or when the second pass
        asks for more of them than the first, or for one of another kind."""
        if self._taken is None:
            found = compute()
            kept = _detached(found)
            self._results.append((kept, _version(kept)))
            self._kinds.append(kind)
            return found
        number, self._taken = self._taken, self._taken + 1
        if number >= len(self._results):
            raise RuntimeError(f"the second forward pass of a block asks for result {number + 1} of {number}")
        if kind != self._kinds[number]:
            was = self._kinds[number]
            raise RuntimeError(f"result {number + 1} of a block is of {was}; its second forward pass asks for {kind}")
        entry, self._results[number] = self._results[number], None
        if entry is None:
            return compute()
        kept, version = entry
        if _version(kept) != version:
            raise RuntimeError("a kept result of a block was changed in place")
        return kept


def _detached(found: Any) -> Any:
    if isinstance(found, tuple):
        return tuple(map(_detached, found))
    return found.detach() if isinstance(found, Tensor) else found


def _version(kept: Any) -> int:
    """How often the tensors were changed in place."""
    tensors = kept if isinstance(kept, tuple) else (kept,)
    return sum(x._version for x in tensors if isinstance(x, Tensor))


class _Open(threading.local):
    """Tapes of the blocks that this thread is in, innermost last: autograd runs second passes in threads of its own."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []


_OPEN = _Open()


def current_tape() -> Tape | None:
    """The tape of the block being run, when it keeps selectively."""
    return _OPEN.tapes[-1] if _OPEN.tapes else None


class Pass(AbstractContextManager[None]):
    """One forward pass of a block over its tape."""

    def __init__(self, tape: Tape, again: bool) -> None:
        self._tape, self._again = tape, again

    def __enter__(self) -> None:
        self._tape.begin(self._again)
        _OPEN.tapes.append(self._tape)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # Not always the innermost: after an error in a block, older torch leaves its pass when the traceback goes.
        _OPEN.tapes[:] = [tape for tape in _OPEN.tapes if tape is not self._tape]
        self._tape.end(complete=error is None)


class _AttentionOperators(TorchDispatchMode):
    """Puts whole results of attention's operators on a tape, with what their backward passes need, whichever of them
    torch chooses. A dispatch mode sees every operator, which takes time: it is for a call of attention alone."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func.namespace == _OWN_ATTENTION[0] and func._schema.name == _OWN_ATTENTION[1]
        if not own and func not in _ATTENTION:
            return func(*args, **(kwargs or {}))
        return self._tape.result(lambda: func(*args, **(kwargs or {})), func)


def keeping_attention() -> AbstractContextManager[object]:
    """Within it, `scaled_dot_product_attention` and our own `frame_attention` are kept by a block that keeps
    selectively. The compiled kernels of FlexAttention are no operators and run again."""
    tape = current_tape()
    return nullcontext() if tape is None else _AttentionOperators(tape)


def _selective() -> tuple[Pass, Pass]:
    tape = Tape()
    return Pass(tape, again=False), Pass(tape, again=True)


def run_block(block: Callable[..., T], recompute: Recompute, *arguments: object) -> T:
    """`block(*arguments)`; its backward pass finds what `recompute` keeps and computes the rest again.

    - `none` keeps everything, `block` only the arguments, `selective` the arguments and the results of products with
      weights (`m4v.model.layers.Linear`) and of attention (`keeping_attention`): dear to compute and small to keep.
      Norms, gates, activations, rotations and gathers are the other way round. Scans run again.

    The results and the gradients are the same bits in all three. Not re-entrant: hooks of sharded parameters run in
    the second forward pass as in the first.
    """
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*arguments)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if recompute == "selective":
        options["context_fn"] = _selective
    # Torch searches all that it is given for tensors: it gets these alone, not the tables beside them.
    rest = [None if isinstance(u, Tensor) else u for u in arguments]
    places = [place for place, u in enumerate(arguments) if isinstance(u, Tensor)]

    def run(*tensors: Tensor) -> T:
        given = list(rest)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return block(*given)

    result: T = checkpoint(run, *(arguments[place] for place in places), **options)
    return result
