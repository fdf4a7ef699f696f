"""The blocks that the speed benchmark times, each with its modes, and the goals that hold between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from baseline_blocks import AttentionBlock, StockMambaBlock, baseline
from block_inputs import Case, Piece, captured, exact_twin
from kernel_choices import Choice, attention_words, leave_reductions_apart, ours, plain, stock, take_functions_whole
from torch import Tensor

from m4v.config import ModelConfig

Mode = Literal["eager", "graph", "compiled", "compiled, graph"]
DENSE, FLEX, RELEASED = "attention, all scores, cuDNN", "attention, FlexAttention", "attention, dense mask (released)"
MODULE, FUNCTION = "mamba-ssm's Mamba2 module", "mamba-ssm's function"
M4V, HALF, LIBRARY, BY_DEFAULT = "M4V, ours", "M4V without temporal branch, ours", "M4V, stock kernels", "M4V, auto"
OURS_ATTENTION = "attention, ours: "
ALL_MODES: tuple[Mode, ...] = ("eager", "graph", "compiled", "compiled, graph")


@dataclass(frozen=True)
class Variant:
    """A block in some modes. `exact` makes its float64 twin; `linear` says that the twin fits at full size."""

    name: str
    modes: tuple[Mode, ...]
    make: Callable[[Case, torch.device, torch.dtype], Piece]
    exact: Callable[[Piece, Case], Piece]
    linear: bool = False
    plain: Callable[[Case, torch.device, torch.dtype], Piece] | None = None  # the same block on plain torch
    # The same block in another form, whose eager results a compiled one must have where its own do not fit a GPU.
    stand_in: Callable[[Case, torch.device, torch.dtype], Piece] | None = None


class Goal(NamedTuple):
    """How many times as fast one variant shall be as another, in their best of these modes."""

    variant: str
    against: str
    modes: tuple[Mode, ...]  # of the other
    forward: float
    both: float


COMPILED: tuple[Mode, ...] = ("compiled", "compiled, graph")
GOALS = (
    Goal(HALF, DENSE, COMPILED, 2.2, 2.2),
    Goal(M4V, DENSE, COMPILED, 2.0, 2.0),
    Goal(M4V, FLEX, COMPILED, 1.9, 1.8),
    Goal(M4V, RELEASED, ("eager",), 3.6, 3.2),
    Goal(M4V, MODULE, ("eager",), 2.2, 2.2),
    Goal(M4V, FUNCTION, ("eager",), 2.2, 2.2),
)


def variants(everything: bool) -> Iterator[Variant]:
    """Most wanted first; without `everything` those alone that all stages and lengths are measured with."""
    more = everything
    yield _product(M4V, {}, ours(), ALL_MODES if more else ("eager", "graph"))
    yield _attention(DENSE, "unmasked", ("compiled", "compiled, graph", "eager") if more else ("compiled",))
    yield _attention(RELEASED, "dense mask", ("eager", "compiled") if more else ("eager",))
    yield _mamba(MODULE, "module")
    if not more:
        return
    yield _attention(FLEX, "flex", ("compiled",))
    yield _product(HALF, {"temporal_branch": False}, ours(), ALL_MODES)
    yield _product(LIBRARY, {}, stock(), ("eager", "graph", "compiled"))
    yield _mamba(FUNCTION, "function")
    for word in attention_words():
        yield _product(OURS_ATTENTION + word, {"mixer": "attention"}, {"attention": word}, ("eager", "compiled"))
    yield _product(BY_DEFAULT, {}, {}, ("eager",))
    yield _mamba(f"{MODULE}, no temporal branch", "module", branch=False)
    yield _mamba(f"{FUNCTION}, no temporal branch", "function", branch=False)


def _product(name: str, switches: dict[str, Any], choice: Choice, modes: tuple[Mode, ...]) -> Variant:
    def config(case: Case) -> ModelConfig:
        return case.base.model_copy(update=switches)

    return Variant(
        name, modes, lambda case, device, dtype: captured(config(case), case, device, dtype, choice),
        lambda piece, case: exact_twin(piece, config(case), case), linear="mixer" not in switches,
        plain=lambda case, device, dtype: captured(config(case), case, device, dtype, plain()),
    )  # fmt: skip


def _attention(name: str, scores: Any, modes: tuple[Mode, ...]) -> Variant:
    kind = "dense mask" if scores == "flex" else scores

    def make(case: Case, device: torch.device, dtype: torch.dtype) -> Piece:
        return baseline(AttentionBlock(case.base, case, scores, device), case, device, dtype)

    def masked(case: Case, device: torch.device, dtype: torch.dtype) -> Piece:
        return baseline(AttentionBlock(case.base, case, kind, device), case, device, dtype)

    def exact(piece: Piece, case: Case) -> Piece:
        return _copied(piece, AttentionBlock(case.base, case, kind, piece.x.device), case)

    # Eager FlexAttention holds all scores: 27 GiB a copy at 15,488 tokens, more than an H200 with those of a gradient.
    return Variant(name, modes, make, exact, stand_in=masked if scores == "flex" else None)


def _mamba(name: str, kind: Any, branch: bool = True) -> Variant:
    def make(case: Case, device: torch.device, dtype: torch.dtype) -> Piece:
        real = kind if device.type == "cuda" else "plain"
        return baseline(StockMambaBlock(case.base, case, real, device, branch), case, device, dtype)

    def exact(piece: Piece, case: Case) -> Piece:
        return _copied(piece, StockMambaBlock(case.base, case, "plain", piece.x.device, branch), case)

    return Variant(name, ("eager",), make, exact, linear=True)


# Parameters of mamba-ssm's module -> those of the plain block.
_MODULE_KEYS = {
    "mamba.in_proj.weight": "project.weight", "mamba.conv1d.weight": "conv.weight", "mamba.conv1d.bias": "conv.bias",
    "mamba.dt_bias": "dt_bias", "mamba.A_log": "A_log", "mamba.D": "D", "mamba.norm.weight": "norm.weight",
}  # fmt: skip


def _copied(piece: Piece, plain_block: Any, case: Case) -> Piece:
    """A baseline's weights and hidden states in float64 in its plain form. The module's own output projection is
    folded into the columns of the block's."""
    twin = baseline(plain_block, case, piece.x.device, torch.float64)
    state = {_MODULE_KEYS.get(name, name): value.double() for name, value in piece.block.state_dict().items()}
    if (folded := state.pop("mamba.out_proj.weight", None)) is not None:
        width = folded.shape[0]
        state["out.weight"] = torch.cat([state["out.weight"][:, :width] @ folded, state["out.weight"][:, width:]], 1)
    plain_block.load_state_dict(state)
    x, temb = (a.double() for a in piece.arguments if isinstance(a, Tensor))
    return replace(twin, x=x, run=lambda hidden: plain_block(hidden, temb))


def compiled(piece: Piece, backend: str) -> Piece:
    """The piece through torch.compile with static shapes, kernels as the opaque operators that they are."""
    take_functions_whole()
    leave_reductions_apart()
    run: Callable[[Tensor], Tensor] = torch.compile(piece.run, dynamic=False, backend=backend)
    return replace(piece, run=run)
