"""The kernels around products, scans and attention against plain torch in float64: whole models at odd sizes, outputs
and the gradient of every parameter, with plain scans and with our own. See `fused_models.py`.
"""

import pytest
import torch
from fused_models import (
    DEVICE,
    DTYPE,
    INTERPRETED,
    MARKS,
    check,
    doubled_inputs,
    error,
    inputs,
    model_of,
    poisoned,
    run,
)
from torch import Tensor

from m4v.kernels import use_kernels
from m4v.kernels.selection import ScanChoice
from m4v.model.scan import LAYER_ORDER

pytestmark = MARKS
VARIANTS: list[dict[str, object]] = [
    {},
    {"registers": False, "text_recomposition": False, "rope_on_ssm": False},
    {"mixer": "parallel"},
    {"mixer": "attention"},
    {"ssm": "mamba1", "dt_rank": 4, "temporal_branch": False},
]
CASES = [(changes, scan) for changes in VARIANTS for scan in ("torch", "triton")]
SIZES = [(2, 1)] if INTERPRETED else [(1, 1), (2, 2), (3, 1)]  # columns, batch
PACK = (1, 1) if INTERPRETED else (2, 2)


@pytest.mark.parametrize(("columns", "batch"), SIZES)
@pytest.mark.parametrize(("changes", "scan"), [c for c in CASES if c[0] in VARIANTS[:3] or c[1] == "torch"], ids=str)
def test_models_are_as_near_to_float64_as_plain_torch(
    changes: dict[str, object], scan: ScanChoice, columns: int, batch: int
) -> None:
    model, given = model_of(changes).cast(DTYPE), inputs(DTYPE, columns, batch)
    with use_kernels(scan=scan, glue="triton"), poisoned():
        fused = run(model, given)
    with use_kernels(scan="torch", glue="torch"):
        plain = run(model, given)
        exact = run(model.double(), inputs(torch.float64, columns, batch) | doubled_inputs(given))
    check(fused, plain, exact, scan)


@pytest.mark.parametrize(("columns", "batch"), SIZES)
@pytest.mark.parametrize("changes", [VARIANTS[0], *VARIANTS[2:]], ids=str)
def test_without_gradients_models_are_as_near_to_float64(changes: dict[str, object], columns: int, batch: int) -> None:
    """There the MLP's activation is a part of its product, and a block's last product is a sum of two."""
    model, given = model_of(changes).cast(DTYPE), inputs(DTYPE, columns, batch)
    with use_kernels(scan="torch", glue="triton"), poisoned():
        kept = run(model, given)
        with torch.no_grad():
            found = [{f"output {i}": u.double() for i, u in enumerate(model(**given))} for _ in range(2)]
    with use_kernels(scan="torch", glue="torch"), torch.no_grad():
        doubled = inputs(torch.float64, columns, batch) | doubled_inputs(given)
        exact = {f"output {i}": u for i, u in enumerate(model.double()(**doubled))}
    assert all(torch.equal(found[0][name], found[1][name]) for name in exact)
    assert any(not torch.equal(found[0][name], kept[name]) for name in exact), "the sum was not taken"
    errors = error(found[0], exact), error(kept, exact)
    print(f"without gradients {errors[0]:.2e}, with them {errors[1]:.2e}")
    assert errors[0] < 1.25 * errors[1] + (1e-6 if INTERPRETED else 1e-4)


def test_every_scan_path_on_both_kernels() -> None:
    """One block for each path, registers and temporal branch in all of them; three stages in a pack."""
    model, given = model_of({"single_blocks": len(LAYER_ORDER)}).cast(DTYPE), inputs(DTYPE, 3, 1)
    found = []
    for scan, glue in (("triton", "triton"), ("torch", "triton"), ("torch", "torch")):
        with use_kernels(scan=scan, glue=glue), poisoned():  # type: ignore[arg-type]
            found.append(run(model, given))
    assert any(not torch.equal(found[0][k], found[1][k]) for k in found[0]), "the scan was not taken"
    with use_kernels(scan="torch", glue="torch"):
        exact = run(model.double(), inputs(torch.float64, 3, 1) | doubled_inputs(given))
    check(found[0], found[2], exact, "triton")


@pytest.mark.parametrize("changes", [{}, {"mixer": "parallel"}], ids=str)
def test_float32_parameters_under_autocast(changes: dict[str, object]) -> None:
    """As in training: parameters and inputs float32, products bfloat16. Recomputed blocks give the same bits."""
    model, given = model_of(changes), inputs(torch.float32, *PACK)
    found = []
    for kernels in ("triton", "torch"):
        with use_kernels(scan=kernels, glue=kernels), torch.autocast(DEVICE, torch.bfloat16), poisoned(strict=True):  # type: ignore[arg-type]
            found.append(run(model, given))
    for recompute in ("selective", "block"):
        model.recompute, model.recompute_blocks = recompute, 2  # type: ignore[assignment]
        with use_kernels(scan="triton", glue="triton"), torch.autocast(DEVICE, torch.bfloat16), poisoned(strict=True):
            again = run(model, given)
        assert [name for name, value in found[0].items() if not torch.equal(value, again[name])] == []
    model.recompute_blocks = 0
    with use_kernels(scan="torch", glue="torch"):
        exact = run(model.double(), given | doubled_inputs(given))
    errors = [error(values, exact) for values in found]
    print(f"kernels {errors[0]:.2e}, plain torch {errors[1]:.2e}")
    assert set(found[0]) == set(exact)
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("changes", [VARIANTS[0], VARIANTS[1]], ids=str)
def test_without_gradients_the_convolution_gathers_its_rows(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit as rows that the composition writes."""
    from m4v.kernels import composition

    taken: list[bool] = []

    def seen(*arguments: Tensor) -> Tensor:
        taken.append(True)
        return convolve_gathered(*arguments)

    convolve_gathered = composition.convolve_gathered
    monkeypatch.setattr(composition, "convolve_gathered", seen)
    model, given = model_of(changes).cast(DTYPE), inputs(DTYPE, *PACK)
    found = []
    with use_kernels(scan="triton", glue="triton"), poisoned(), torch.no_grad():
        for chosen in (True, False):
            monkeypatch.setattr("m4v.model.mamba.GATHERED_CONVOLUTION", chosen)
            found.append(model(**given))
            assert len(taken) == 2  # single blocks
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("scan", ["torch", "triton"])
@pytest.mark.parametrize("recompute", ["selective", "block"])
def test_recomputed_blocks_and_repeated_steps_give_the_same_bits(recompute: str, scan: ScanChoice) -> None:
    """No atomics: the kernels' sums have one order, whoever runs them."""
    model, given = model_of({}).cast(DTYPE), inputs(DTYPE, *PACK)
    with use_kernels(scan=scan, glue="triton"), poisoned(strict=True):
        first = run(model, given)
        repeated = [run(model, given) for _ in range(1 if INTERPRETED else 10)]
        model.recompute, model.recompute_blocks = recompute, 2  # type: ignore[assignment]
        again = run(model, given)
    for other in (*repeated, again):
        assert all(torch.equal(value, other[name]) for name, value in first.items())
