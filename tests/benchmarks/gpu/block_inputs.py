"""The product's single-stream blocks with the arguments that its own transformer gives them at 768p."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from kernel_choices import Choice, chosen, plain
from random_model import random_model
from torch import Tensor, nn

from m4v.config import ModelConfig
from m4v.flops import Setting
from m4v.model import M4VTransformer

STAGES = ("low", "mid", "high")
FULL = ModelConfig()
TINY = ModelConfig(width=64, heads=2, text_dim=32, pooled_dim=32, text_slots=8)
TINY_PLACES = (8, 16)  # of the highest stage; at 768p 96 x 160


class Case(NamedTuple):
    """The last unit of a video of so many pixel frames at one pyramid stage, one sample."""

    frames: int
    stage: int
    tiny: bool = False

    @property
    def setting(self) -> Setting:
        places = TINY_PLACES if self.tiny else (96, 160)
        return Setting((self.frames - 1) // 8 + 1, self.stage, *places)

    @property
    def base(self) -> ModelConfig:
        return TINY if self.tiny else FULL

    @property
    def tokens(self) -> int:
        """Text and image."""
        return self.base.text_slots + self.setting.column().tokens

    @property
    def name(self) -> str:
        return f"{self.frames}f {STAGES[self.stage]}"


def model_inputs(config: ModelConfig, case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the transformer's forward, all text slots but a third in use."""
    generator = torch.Generator(device).manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    clips = [normal(1, 16, c.frames, 2 * c.height, 2 * c.width) for c in case.setting.column().clips]
    used = torch.arange(config.text_slots, device=device)[None] < config.text_slots * 2 // 3
    return {
        "columns": [clips], "timesteps": torch.full((1,), 500.0, device=device),
        "text": normal(1, config.text_slots, config.text_dim), "text_mask": used,
        "pooled": normal(1, config.pooled_dim), "stages": [case.stage],
    }  # fmt: skip


@dataclass
class Piece:
    """A block as a function of its hidden states x; `arguments` are all that its transformer gives it.

    What runs it must be inside `chosen(choice)`, since compiled functions must not choose.
    """

    block: nn.Module
    x: Tensor
    run: Callable[[Tensor], Tensor]
    choice: Choice
    arguments: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        generator = torch.Generator(self.x.device).manual_seed(8)
        self.gradient = torch.randn(self.x.shape, generator=generator, device=self.x.device).to(self.x.dtype)
        self.parameters = list(self.block.parameters())

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.x)

    def forward_backward(self) -> tuple[Tensor | None, ...]:
        """Gradients of x and of every parameter."""
        x = self.x.detach().requires_grad_()
        return torch.autograd.grad(self.run(x), [x, *self.parameters], self.gradient, allow_unused=True)


def captured(config: ModelConfig, case: Case, device: torch.device, dtype: torch.dtype, choice: Choice) -> Piece:
    """The second single-stream block of a small stack of full width, as its transformer calls it."""
    slim = random_model(_slim(config), device, dtype)
    return _piece(slim, _arguments(slim, case, dtype, choice), choice)


def exact_twin(piece: Piece, config: ModelConfig, case: Case) -> Piece:
    """The same block, weights and hidden states in float64 on plain torch."""
    slim = random_model(_slim(config), piece.x.device, torch.float64)
    for parameter in slim.parameters():  # `random_model` keeps what steers the recurrence in float32
        parameter.data = parameter.data.double()
    slim.single_transformer_blocks[1].load_state_dict(piece.block.state_dict())
    own = _arguments(slim, case, torch.float64, plain())
    same = [_exact(a, b) for a, b in zip(piece.arguments, own, strict=True)]
    return _piece(slim, tuple(same), plain())


def _slim(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"double_blocks": 1, "single_blocks": 2})


def _exact(given: object, own: object) -> object:
    return given.double() if isinstance(given, Tensor) and given.is_floating_point() else own


def _arguments(slim: M4VTransformer, case: Case, dtype: torch.dtype, choice: Choice) -> tuple[object, ...]:
    found: list[tuple[object, ...]] = []

    def seen(block: nn.Module, arguments: tuple[object, ...]) -> None:
        found.append(arguments)

    handle = slim.single_transformer_blocks[1].register_forward_pre_hook(seen)
    try:
        device = next(slim.parameters()).device
        with chosen(choice), torch.no_grad():
            slim(**model_inputs(slim.config, case, device, dtype))
    finally:
        handle.remove()
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in found[0])


def _piece(slim: M4VTransformer, arguments: tuple[object, ...], choice: Choice) -> Piece:
    block, (x, *rest) = slim.single_transformer_blocks[1], arguments
    if not isinstance(x, Tensor):
        raise TypeError(f"the block's first argument is {type(x).__name__}, not its hidden states")

    def run(hidden: Tensor) -> Tensor:
        out: Tensor = block(hidden, *rest)
        return out

    return Piece(block, x, run, choice, arguments)
