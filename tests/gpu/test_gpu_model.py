"""The whole small model on the fast kernels against float64 plain torch, forwards and gradients.

Both 16-bit models round in every layer, so the plain one sets the scale: the kernels may not be further from
float64 than it is, but for a quarter.
"""

import importlib.util

import pytest
import torch
from torch import Tensor

from m4v.config import ModelConfig
from m4v.flow.packing import history_shape
from m4v.kernels import use_kernels
from m4v.model import M4VTransformer, build_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
MAMBA1 = pytest.mark.skipif(
    importlib.util.find_spec("selective_scan_cuda") is None, reason="mamba-ssm's extension for Mamba-1 is not here"
)
COLUMNS = {"high": ([2], [5]), "long": ([2], [31]), "packed": ([0, 1, 2], [9, 1, 4])}  # stages, units


def model_of(config: ModelConfig) -> M4VTransformer:
    """bfloat16, no parameter at a special value."""
    model = build_model(config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.cast(torch.bfloat16).cuda()


def inputs_of(config: ModelConfig, stages: list[int], units: list[int], batch: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).cuda().bfloat16()

    def clips(stage: int, unit: int) -> list[Tensor]:
        sizes = [*history_shape(stage, unit), (stage, 1)]
        return [normal(batch, config.latent_channels, n, 24 >> (2 - s), 40 >> (2 - s)) for s, n in sizes]

    rows, slots = batch * len(stages), config.text_slots
    length = torch.randint(0, slots + 1, (rows, 1), generator=generator)
    length[0] = 0
    return {
        "columns": [clips(s, u) for s, u in zip(stages, units, strict=True)],
        "timesteps": (torch.rand(rows, generator=generator) * 1000).cuda(),
        "text": normal(rows, slots, config.text_dim),
        "text_mask": (torch.arange(slots) < length).cuda(),
        "pooled": normal(rows, config.pooled_dim),
        "stages": stages,
    }


def in_type(inputs: dict[str, object], dtype: torch.dtype) -> dict[str, object]:
    columns = [[clip.to(dtype) for clip in column] for column in inputs["columns"]]
    return inputs | {"columns": columns} | {k: inputs[k].to(dtype) for k in ("text", "pooled")}


def run(model: M4VTransformer, inputs: dict[str, object]) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    model.zero_grad()
    outs = model(**inputs)
    generator = torch.Generator("cuda").manual_seed(2)
    sum((out.double() * torch.randn(out.shape, generator=generator, device="cuda")).sum() for out in outs).backward()
    found = {f"output {i}": out.detach().double() for i, out in enumerate(outs)}
    return found | {name: p.grad.double() for name, p in model.named_parameters()}


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    return float(
        torch.cat([(found[k] - exact[k]).flatten() for k in exact]).norm()
        / torch.cat([exact[k].flatten() for k in exact]).norm()
    )


@pytest.mark.parametrize("case", COLUMNS)
@pytest.mark.parametrize(
    "changes",
    [
        {"mixer": "attention"},
        {},
        pytest.param({"ssm": "mamba1", "dt_rank": 8}, marks=MAMBA1),
        {"mixer": "parallel", "text_recomposition": False},
    ],
    ids=str,
)
def test_the_kernels_are_as_near_to_float64_as_plain_torch(changes: dict[str, object], case: str) -> None:
    sizes = {"width": 128, "heads": 2, "double_blocks": 1, "single_blocks": 3, "latent_channels": 4}
    text = {"text_dim": 8, "pooled_dim": 6, "text_slots": 19}
    config = ModelConfig.model_validate(sizes | text | changes)
    model, inputs = model_of(config), inputs_of(config, *COLUMNS[case], batch=2)
    with use_kernels(scan="mamba_ssm", attention="flex"):
        fast = run(model, inputs)
    with use_kernels(scan="torch", attention="dense"):
        plain = run(model, inputs)
        exact = run(model.double(), in_type(inputs, torch.float64))
    assert any(not torch.equal(fast[k], plain[k]) for k in fast)  # else the kernels were not taken
    for kind in ("output", ""):
        keys = [k for k in exact if k.startswith("output") == bool(kind)]
        chosen = {k: exact[k] for k in keys}
        errors = error(fast, chosen), error(plain, chosen)
        print(f"{kind or 'gradients'}: kernels {errors[0]:.2e}, plain torch {errors[1]:.2e}")
        assert errors[0] < 1.25 * errors[1] + 1e-4
    for key, value in exact.items():
        if float(value.norm()) > 0:
            of_kernels, of_torch = (error(found, {key: value}) for found in (fast, plain))
            # A lone number is a sum that nearly cancels: its error is chance, of either model.
            assert of_kernels < 2 * of_torch + (1e-2 if value.numel() > 1 else 0.1), (key, of_kernels, of_torch)


@pytest.mark.parametrize("scan", ["mamba_ssm", "torch"])
def test_recomputed_blocks_give_the_same_gradients(scan: str) -> None:
    """Checkpointed blocks run the same kernels twice, the second time in a thread of the backward pass."""
    config = ModelConfig.model_validate(
        {"width": 128, "heads": 2, "double_blocks": 1, "single_blocks": 2, "latent_channels": 4, "text_dim": 8,
         "pooled_dim": 6, "text_slots": 19}
    )  # fmt: skip
    model, inputs = model_of(config), inputs_of(config, [2], [5], batch=1)
    with use_kernels(scan=scan, attention="flex"):
        plain = run(model, inputs)
        model.recompute_blocks = 2
        again = run(model, inputs)
    assert error(again, plain) < 2**-9
