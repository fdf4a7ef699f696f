"""The whole transformer: what may and may not change an output, and what is refused."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from m4v.config import ModelConfig
from m4v.core.config import parse
from m4v.core.errors import ConfigError
from m4v.flow.packing import history_shape
from m4v.model import M4VTransformer, build_model

BASE = {
    "width": 32, "heads": 2, "double_blocks": 2, "single_blocks": 3, "latent_channels": 4, "text_dim": 8,
    "pooled_dim": 6, "text_slots": 5, "chunk_size": 8, "dt_rank": 3,
}  # fmt: skip
ARCHITECTURES = ["attention", "mm_dim", "pre_half", "post_half", "interleaved", "parallel"]
STAGES = [0, 1, 2]


def config_of(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(BASE | changes)


def lively(config: ModelConfig, seed: int = 0) -> M4VTransformer:
    """A float64 model in which no parameter is zero."""
    model = build_model(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def clips(stage: int, unit: int, batch: int = 2) -> list[Tensor]:
    def clip(size: int, frames: int) -> Tensor:
        return torch.randn(batch, 4, frames, 8 >> (2 - size), 16 >> (2 - size), dtype=torch.float64)

    return [*(clip(size, frames) for size, frames in history_shape(stage, unit)), clip(stage, 1)]


def batch_of(config: ModelConfig, columns: list[list[Tensor]], seed: int = 0) -> dict[str, object]:
    torch.manual_seed(seed)
    rows = columns[0][0].shape[0] * len(columns)
    valid = torch.arange(config.text_slots)[None] < torch.randint(0, config.text_slots + 1, (rows, 1))
    return {
        "columns": columns,
        "timesteps": torch.rand(rows).double() * 1000,
        "text": torch.randn(rows, config.text_slots, config.text_dim).double(),
        "text_mask": valid,
        "pooled": torch.randn(rows, config.pooled_dim).double(),
        "stages": STAGES[: len(columns)],
    }


def three_columns() -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [clips(0, 4), clips(1, 3), clips(2, 4)]


@pytest.mark.parametrize("mixer", ARCHITECTURES)
def test_columns_do_not_see_each_other(mixer: str) -> None:
    config = config_of(mixer=mixer)
    model, columns = lively(config), three_columns()
    batch = batch_of(config, columns)
    together = model(**batch)
    for number in range(3):
        alone = batch | {"columns": [columns[number]], "stages": [STAGES[number]]}
        for key in ("timesteps", "text", "text_mask", "pooled"):
            alone[key] = batch[key][number::3]
        torch.testing.assert_close(model(**alone)[0], together[number], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixer", ["attention", "mm_dim", "parallel"])
def test_text_pads_equal_no_text(mixer: str) -> None:
    """Slots beyond the valid tokens change nothing, whatever stands in them."""
    config = config_of(mixer=mixer, text_slots=3)
    model, columns = lively(config), three_columns()
    batch = batch_of(config, columns)
    batch["text_mask"] = torch.ones(6, 3, dtype=torch.long)
    wide = M4VTransformer(config_of(mixer=mixer, text_slots=7)).double()
    wide.load_state_dict(model.state_dict())
    padded = batch | {
        "text": torch.cat([batch["text"], torch.randn(6, 4, 8).double()], dim=1),
        "text_mask": torch.nn.functional.pad(batch["text_mask"], (0, 4)),
    }
    for narrow, padded_out in zip(model(**batch), wide(**padded), strict=True):
        torch.testing.assert_close(padded_out, narrow, rtol=1e-9, atol=1e-11)


def test_same_inputs_give_the_same_bits_also_when_recomputing() -> None:
    config, columns = config_of(), [[c.float() for c in column] for column in three_columns()]
    batch = {k: v.float() if k in ("text", "pooled") else v for k, v in batch_of(config, columns).items()}
    results = []
    for recompute in (0, 0, 8):
        model = lively(config).float()
        model.recompute_blocks = recompute
        out = model(**batch)
        sum(o.square().sum() for o in out).backward()
        results.append([*(o.detach() for o in out), *(p.grad for p in model.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("mixer", ARCHITECTURES)
@pytest.mark.parametrize(("stage", "unit"), [(0, 1), (2, 1), (1, 4)])
def test_every_parameter_gets_a_gradient_from_any_batch(mixer: str, stage: int, unit: int) -> None:
    """Sharded optimizers need the same parameters on every rank in every step."""
    config = config_of(mixer=mixer)
    model = lively(config)
    batch = batch_of(config, [clips(stage, unit)]) | {"stages": [stage], "text_mask": torch.zeros(2, 5)}
    model(**batch)[0].sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_registers_tell_the_stage() -> None:
    """Two columns of equal shape at different stages differ through their registers and pieces alone."""
    config = config_of(mixer="mm_dim")
    model = lively(config)
    batch = batch_of(config, [clips(2, 1)])
    low, high = model(**batch | {"stages": [0]})[0], model(**batch | {"stages": [2]})[0]
    assert not torch.allclose(low, high)


def test_untrained_model_predicts_zero_and_depends_on_its_seed_only() -> None:
    config = config_of()
    first, again, other = build_model(config, 3), build_model(config, 3), build_model(config, 4)
    batch = batch_of(config, three_columns())
    assert all((out == 0).all() for out in first.double()(**batch))
    same = dict(again.double().named_parameters())
    assert all(torch.equal(p, same[name]) for name, p in first.named_parameters())
    key = "single_transformer_blocks.0.mamba.to_x.weight"
    assert not torch.equal(other.state_dict()[key], same[key].float())


def test_threads_give_a_large_model_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    plain = build_model(config, 3).state_dict()
    monkeypatch.setattr(import_module("m4v.model.initialise"), "MANY_ELEMENTS", 0)
    assert all(torch.equal(value, plain[name]) for name, value in build_model(config, 3).state_dict().items())


def test_initial_mamba_parameters() -> None:
    model = build_model(config_of(width=64, heads=16, rope_axes=(0, 2, 2)))
    mamba = model.single_transformer_blocks[0].mamba
    step, rate = torch.nn.functional.softplus(mamba.dt_bias.detach()), mamba.A_log.detach().exp()
    assert 1e-3 <= float(step.min()) <= float(step.max()) <= 1e-1
    assert 1 <= float(rate.min()) <= float(rate.max()) <= 16
    torch.testing.assert_close(torch.nn.functional.silu(mamba.to_z.bias), torch.ones(64))
    assert 0 < float(mamba.registers.detach().abs().max()) < 0.1
    assert float(model.single_transformer_blocks[0].temporal.scale.detach()) == 0
    paper = build_model(config_of(ssm="mamba1", state_size=8)).single_transformer_blocks[0].mamba
    torch.testing.assert_close(paper.A_log.exp(), torch.arange(1.0, 9).expand(32, 8))


@pytest.mark.parametrize(
    ("changes", "billions"),
    [
        ({"mixer": "attention"}, 1.972),
        ({"mixer": "mm_dim", "temporal_branch": False}, 2.032),
        ({"mixer": "mm_dim"}, 2.209),
        ({"mixer": "mm_dim", "ssm": "mamba1", "temporal_branch": False}, 2.036),
        ({"mixer": "mm_dim", "ssm": "mamba1"}, 2.213),
        ({"mixer": "pre_half", "ssm": "mamba1", "temporal_branch": False}, 2.004),
    ],
    ids=str,
)
def test_published_sizes(changes: dict[str, object], billions: float) -> None:
    """Parameters of Table 4's rows (spec/pyramidflow 11)."""
    with torch.device("meta"):
        model = M4VTransformer(ModelConfig.model_validate(changes))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=6e-4)


@torch.no_grad()
def test_bfloat16_stays_near_float32() -> None:
    config = config_of()
    model = lively(config)
    batch = batch_of(config, three_columns())
    exact = model(**batch)
    half = {k: v.bfloat16() if k in ("text", "pooled") else v for k, v in batch.items()}
    half["columns"] = [[c.bfloat16() for c in column] for column in batch["columns"]]
    half["timesteps"] = batch["timesteps"].float()
    model.cast(torch.bfloat16)
    assert {p.dtype for n, p in model.named_parameters() if n.endswith((".A_log", ".D", ".dt_bias"))} == {torch.float32}
    for rough, fine in zip(model(**half), exact, strict=True):
        assert rough.dtype == torch.bfloat16
        error = (rough.double() - fine).norm() / fine.norm()
        assert error < 0.1


def test_what_does_not_fit_is_refused() -> None:
    config = config_of()
    model, columns = lively(config), three_columns()
    batch = batch_of(config, columns)
    with pytest.raises(ValueError, match="stage of each column"):
        model(**batch | {"stages": None})
    with pytest.raises(ValueError, match="text has 4 slots"):
        model(**batch | {"text": batch["text"][:, :4]})
    with pytest.raises(ValueError, match="rows for 2 samples"):
        model(**batch | {"text": batch["text"][:4]})
    with pytest.raises(ValueError, match="not divisible by 4"):
        model(**batch | {"stages": [2, 1, 2]})
    with pytest.raises(ValueError, match="even sizes"):
        model(**batch | {"columns": [[columns[0][0], columns[0][-1][..., :3]], *columns[1:]]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 33}, "not a multiple of heads"),
        ({"rope_axes": (4, 6, 8)}, "sum to the head size"),
        ({"rope_axes": (5, 5, 6)}, "must be even"),
        ({"state_size": 4}, "state_size must be 16"),
        ({"ssm": "mamba1", "state_size": 5}, "does not divide"),
        ({"mixer": "mamba"}, "mixer"),
        ({"widht": 64}, "did you mean width"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, BASE | changes, "test")


@pytest.mark.parametrize(
    ("mixer", "mamba_blocks"),
    [("attention", []), ("mm_dim", [0, 1, 2, 3]), ("pre_half", [0, 1]), ("post_half", [2, 3]), ("interleaved", [0, 2])],
)
def test_where_mamba_stands(mixer: str, mamba_blocks: list[int]) -> None:
    model = build_model(config_of(mixer=mixer, single_blocks=4))
    blocks = model.single_transformer_blocks
    assert [i for i, b in enumerate(blocks) if b.mamba is not None] == mamba_blocks
    assert [i for i, b in enumerate(blocks) if b.attn is None] == mamba_blocks
