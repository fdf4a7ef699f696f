"""The kernels around products, scans and attention against plain torch in float64: whole models at odd sizes, outputs
and the gradient of every parameter. On a GPU in bfloat16; with TRITON_INTERPRET=1 on any machine, in float32.

Buffers that a kernel leaves unwritten would be seen: memory is filled with NaN before it is handed out.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from m4v.config import ModelConfig
from m4v.kernels import use_kernels
from m4v.model import M4VTransformer, build_model

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA device"),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
SIZES = {"double_blocks": 1, "single_blocks": 2, "latent_channels": 4, "text_dim": 8, "pooled_dim": 6, "text_slots": 5}
WIDTH = {"width": 48, "heads": 3, "mlp_ratio": 2, "chunk_size": 8} if INTERPRETED else {"width": 192, "heads": 3}
VARIANTS: list[dict[str, object]] = [
    {},
    {"registers": False, "text_recomposition": False, "rope_on_ssm": False},
    {"mixer": "parallel"},
    {"mixer": "attention"},
    {"ssm": "mamba1", "dt_rank": 4, "temporal_branch": False},
]
Found = dict[str, Tensor]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is asked for without a value holds NaN (torch's deterministic mode fills it)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def model_of(changes: dict[str, object]) -> M4VTransformer:
    """No parameter at a special value."""
    model = build_model(ModelConfig.model_validate(SIZES | WIDTH | changes), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(DEVICE)


def inputs(dtype: torch.dtype, columns: int, batch: int) -> dict[str, object]:
    """`columns` of different stages; text masks with holes, one without any token."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    clips = [
        [normal(batch, 4, 2, 4, 6), normal(batch, 4, 1, 4, 6)],
        [normal(batch, 4, 1, 4, 6), normal(batch, 4, 1, 8, 12)],
        [normal(batch, 4, 1, 4, 6), normal(batch, 4, 1, 8, 12), normal(batch, 4, 1, 16, 24)],
    ]
    rows = batch * columns
    mask = torch.rand(rows, 5, generator=generator) > 0.4
    mask[0] = False
    return {
        "columns": clips[:columns], "timesteps": (torch.rand(rows, generator=generator) * 1000).to(DEVICE),
        "text": normal(rows, 5, 8), "text_mask": mask.to(DEVICE), "pooled": normal(rows, 6),
        "stages": list(range(columns)),
    }  # fmt: skip


def run(model: M4VTransformer, given: dict[str, object]) -> Found:
    """Outputs and gradients by name."""
    model.zero_grad(set_to_none=True)
    outs = model(**given)
    generator = torch.Generator().manual_seed(2)
    loss = sum((out.double() * torch.randn(out.shape, generator=generator).to(DEVICE)).sum() for out in outs)
    assert isinstance(loss, Tensor)
    loss.backward()
    found = {f"output {i}": out.detach().double() for i, out in enumerate(outs)}
    return found | {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def error(found: Found, exact: Found) -> float:
    def flat(values: Found) -> Tensor:
        return torch.cat([values[k].flatten() for k in exact])

    return float((flat(found) - flat(exact)).norm() / flat(exact).norm())


def check(fused: Found, plain: Found, exact: Found) -> None:
    """The kernels are no further from float64 than plain torch of the same types but for a quarter."""
    assert set(fused) == set(exact)
    assert any(not torch.equal(fused[k], plain[k]) for k in fused), "the kernels were not taken"
    assert all(value.isfinite().all() for value in fused.values())
    floor = 1e-6 if INTERPRETED else 1e-4
    for kind in ("output", ""):
        chosen = {k: v for k, v in exact.items() if k.startswith("output") == bool(kind)}
        errors = error(fused, chosen), error(plain, chosen)
        print(f"{kind or 'gradients'}: kernels {errors[0]:.2e}, plain torch {errors[1]:.2e}")
        assert errors[0] < 1.25 * errors[1] + floor
    for name, value in exact.items():
        if float(value.norm()) > 0:
            of_kernels, of_torch = (error(found, {name: value}) for found in (fused, plain))
            slack = 1e-4 if INTERPRETED else (1e-2 if value.numel() > 1 else 0.1)
            assert of_kernels < 2 * of_torch + slack, (name, of_kernels, of_torch)


@pytest.mark.parametrize(("columns", "batch"), [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_models_are_as_near_to_float64_as_plain_torch(changes: dict[str, object], columns: int, batch: int) -> None:
    model, given = model_of(changes).cast(DTYPE), inputs(DTYPE, columns, batch)
    with use_kernels(scan="torch", glue="triton"), poisoned():
        fused = run(model, given)
    with use_kernels(scan="torch", glue="torch"):
        plain = run(model, given)
        exact = run(model.double(), inputs(torch.float64, columns, batch) | _same(given))
    check(fused, plain, exact)


def _same(given: dict[str, object]) -> dict[str, object]:
    """The rounded inputs, in float64."""
    columns = given["columns"]
    assert isinstance(columns, list)
    doubled: dict[str, object] = {"columns": [[clip.double() for clip in column] for column in columns]}
    for name in ("text", "pooled"):
        value = given[name]
        assert isinstance(value, Tensor)
        doubled[name] = value.double()
    return doubled


def test_float32_parameters_under_autocast() -> None:
    """As in training: parameters and inputs float32, products bfloat16."""
    model, given = model_of({}), inputs(torch.float32, 2, 2)
    found = []
    for glue in ("triton", "torch"):
        with use_kernels(scan="torch", glue=glue), torch.autocast(DEVICE, torch.bfloat16):  # type: ignore[arg-type]
            found.append(run(model, given))
    with use_kernels(scan="torch", glue="torch"):
        exact = run(model.double(), given | _same(given))
    errors = [error(values, exact) for values in found]
    print(f"kernels {errors[0]:.2e}, plain torch {errors[1]:.2e}")
    assert set(found[0]) == set(exact)
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("recompute", ["selective", "block"])
def test_recomputed_blocks_and_repeated_steps_give_the_same_bits(recompute: str) -> None:
    """No atomics: the kernels' sums have one order, whoever runs them."""
    model, given = model_of({}).cast(DTYPE), inputs(DTYPE, 2, 2)
    with use_kernels(scan="torch", glue="triton"), poisoned():
        first = run(model, given)
        repeated = [run(model, given) for _ in range(1 if INTERPRETED else 10)]
        model.recompute, model.recompute_blocks = recompute, 2  # type: ignore[assignment]
        again = run(model, given)
    for other in (*repeated, again):
        assert all(torch.equal(value, other[name]) for name, value in first.items())
