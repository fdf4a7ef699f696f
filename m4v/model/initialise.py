"""Initial weights: the reference's rules for the base, and what M4V adds; keyed by (seed, parameter name)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from m4v.config import ModelConfig
from m4v.core.rng import torch_seed
from m4v.core.threads import together
from m4v.model.mamba import CausalConv, MambaMixer
from m4v.model.transformer import M4VTransformer
from m4v.shapes_only import give_memory, shapes_only

DT_RANGE = (1e-3, 1e-1)  # step sizes that Mamba starts from, log-uniform
MANY_ELEMENTS = 1 << 24  # from here on threads are worth their start: a core draws 50 million values a second
SILU_ONE = 1.2784645427610738  # silu(x) = 1: the gate starts open
NORMAL_STD = 0.02
Rule = Callable[[nn.Module, str, Tensor, torch.Generator], None]  # owner, dotted name, parameter to set, generator


def build_model(config: ModelConfig, seed: int = 0) -> M4VTransformer:
    """An initialised float32 model on the CPU. Equal configs and seeds give equal bytes."""
    with shapes_only():
        model = M4VTransformer(config)
    give_memory(model)
    initialise(model, seed)
    return model


def initialise(model: M4VTransformer, seed: int) -> None:
    """Set every parameter. A parameter's values depend on the seed and its name only."""
    fill(model, seed, initialise_parameter)


def initial_value(model: M4VTransformer, name: str, seed: int) -> Tensor:
    """What `initialise` gives the parameter `name`, float32 on the CPU; the model may be on the meta device."""
    return filled(model, name, seed, initialise_parameter)


def fill(model: nn.Module, seed: int, rule: Rule) -> None:
    """Set every parameter by `rule`, each from a generator of its own: in threads where there are many values, which
    then are the same."""
    named = list(model.named_parameters())
    if sum(parameter.numel() for _, parameter in named) < MANY_ELEMENTS:
        for name, parameter in named:
            _apply(model, name, parameter, seed, rule)
        return
    together(lambda item: _apply(model, *item, seed, rule), named)


def filled(model: nn.Module, name: str, seed: int, rule: Rule) -> Tensor:
    """What `fill` gives one parameter, float32 on the CPU; the model may be on the meta device."""
    value = torch.empty(model.get_parameter(name).shape, dtype=torch.float32, device="cpu")
    _apply(model, name, value, seed, rule)
    return value


@torch.no_grad()
def _apply(model: nn.Module, name: str, parameter: Tensor, seed: int, rule: Rule) -> None:
    owner = model.get_submodule(name.rpartition(".")[0])
    rule(owner, name, parameter, torch.Generator().manual_seed(torch_seed(seed, "init", name)))


def initialise_parameter(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Set one parameter of `owner` by its dotted name; other models with these mixers use it too."""
    module, leaf = name.rpartition(".")[0], name.rpartition(".")[2]
    if isinstance(owner, MambaMixer):
        _initialise_mamba(owner, leaf, parameter, generator)
    elif isinstance(owner, CausalConv):
        bound = float(owner.weight.shape[1] ** -0.5)
        parameter.uniform_(-bound, bound, generator=generator)
    elif not isinstance(owner, nn.Linear):
        parameter.fill_(0.0 if leaf == "scale" else 1.0)  # temporal scale; RMSNorm weights
    elif module.endswith("norm.linear") or ".norm1" in module or module in ("norm_out.linear", "proj_out"):
        parameter.zero_()
    elif module.endswith(".mamba.to_z"):
        parameter.fill_(SILU_ONE) if leaf == "bias" else parameter.normal_(0, NORMAL_STD, generator=generator)
    elif leaf == "bias":
        parameter.zero_()
    elif module.startswith("time_text_embed.") or module == "context_embedder":
        parameter.normal_(0, NORMAL_STD, generator=generator)
    else:
        nn.init.xavier_uniform_(parameter, generator=generator)


def _initialise_mamba(mixer: MambaMixer, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
    if leaf == "A_log":
        if parameter.dim() == 2:  # mamba1: 1 .. N in every channel
            parameter.copy_(torch.arange(1, parameter.shape[1] + 1, dtype=torch.float32).log().expand_as(parameter))
        else:  # ssd: decays between 1 and 16 per head
            parameter.copy_(parameter.uniform_(1, 16, generator=generator).log())
    elif leaf == "dt_bias":
        low, high = math.log(DT_RANGE[0]), math.log(DT_RANGE[1])
        dt = parameter.uniform_(low, high, generator=generator).exp()
        parameter.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
    elif leaf == "D":
        parameter.fill_(1.0)
    elif leaf == "registers":
        nn.init.trunc_normal_(parameter, std=NORMAL_STD, generator=generator)
