"""What several tests of the mixers share: small float64 models, packed columns, masks, comparisons with definitions."""

import torch
from torch import Tensor

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.model import M4VTransformer, initialise
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.mamba import MambaMixer
from m4v.model.recomposition import Recomposition, recomposition, text_order
from m4v.model.reference import mixer_reference, temporal_reference
from m4v.model.tables import composition_table, register_types
from m4v.model.temporal import TemporalBranch


def model_config(**changes: object) -> ModelConfig:
    base = {
        "width": 32, "heads": 2, "double_blocks": 1, "single_blocks": 2, "latent_channels": 4, "text_dim": 8,
        "pooled_dim": 6, "text_slots": 5, "chunk_size": 8, "dt_rank": 3,
    }  # fmt: skip
    return ModelConfig.model_validate(base | changes)


def random_model(config: ModelConfig, seed: int = 0) -> M4VTransformer:
    """Float64, no parameter at a special value, so that nothing is hidden behind a zero."""
    with torch.device("meta"):
        model = M4VTransformer(config)
    model.to_empty(device="cpu")
    initialise(model, seed)
    model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def column(stage: int, unit: int, height: int = 4, width: int = 4) -> Column:
    """A packed column as training makes it; height and width are tokens of the highest stage."""
    clips = [Clip(n, height >> (2 - s), width >> (2 - s)) for s, n in history_shape(stage, unit)]
    return Column(stage, (*clips, Clip(1, height >> (2 - stage), width >> (2 - stage))))


def tables_of(layout: BatchLayout, valid: Tensor, path: int, config: ModelConfig) -> Recomposition:
    table = composition_table(
        layout, path, config.scan, config.registers, config.text_recomposition, config.chunk_size,
        config.conv_width - 1, "cpu",
    )  # fmt: skip
    return recomposition(table, text_order(valid), layout.text_tokens + layout.image_tokens, torch.float64)


def masks(layout: BatchLayout, batch: int, seed: int) -> Tensor:
    """Text masks of every length from an empty prompt to full."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, layout.text_slots + 1, (batch, len(layout.columns), 1), generator=generator)
    return torch.arange(layout.text_slots).expand(batch, len(layout.columns), -1) < count


def mixer_case(layout: BatchLayout, config: ModelConfig, path: int, seed: int, valid: Tensor | None = None) -> None:
    """MambaMixer and its reference agree, and so do all gradients."""
    torch.manual_seed(seed)
    mixer = random_model(config, seed).single_transformer_blocks[0].mamba
    assert isinstance(mixer, MambaMixer)
    valid = masks(layout, 2, seed) if valid is None else valid
    tables = tables_of(layout, valid, path, config)
    types = register_types(layout, "cpu")
    turn = rotary(layout, config.axes, config.rope_theta, config.registers, "cpu", True)
    x = torch.randn(len(valid), tables.tokens, config.width, dtype=torch.float64)
    real = torch.ones(len(valid), tables.tokens, 1, dtype=torch.float64)
    real[:, : layout.text_tokens] = valid.flatten(1)[..., None].double()
    weight = torch.randn_like(x) * real  # what stands at text pads is nobody's business
    results = []
    for form in ("fast", "reference"):
        mixer.zero_grad()
        leaf = x.clone().requires_grad_()
        fast = form == "fast"
        y = mixer(leaf, types, turn, tables) if fast else mixer_reference(mixer, leaf, layout, valid, path)
        (y * weight).sum().backward()
        gradients = {name: p.grad.clone() for name, p in mixer.named_parameters()}
        results.append((y.detach() * real, leaf.grad * real, gradients))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-10)
    for name, gradient in results[0][2].items():
        torch.testing.assert_close(
            gradient, results[1][2][name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def temporal_case(layout: BatchLayout, config: ModelConfig, seed: int) -> None:
    """TemporalBranch and its reference agree, and so do all gradients."""
    torch.manual_seed(seed)
    branch = random_model(config, seed).single_transformer_blocks[0].temporal
    assert isinstance(branch, TemporalBranch)
    x = torch.randn(1, layout.image_tokens, config.width, dtype=torch.float64)
    weight, results = torch.randn_like(x), []
    for form in (branch, lambda u, where: temporal_reference(branch, u, where)):
        branch.zero_grad()
        leaf = x.clone().requires_grad_()
        y = form(leaf, layout)
        (y * weight).sum().backward()
        results.append([y.detach(), leaf.grad, *(p.grad.clone() for p in branch.parameters())])
    for fast, exact in zip(*results, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-9, atol=1e-11)
