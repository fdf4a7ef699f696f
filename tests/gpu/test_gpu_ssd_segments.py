"""Our Mamba-2 scan without gradients against the recurrence in float64 and against itself with gradients.

Without a GPU in Triton's interpreter, as `test_gpu_ssd.py`.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from test_gpu_ssd import (
    BATCH,
    DEVICE,
    FLOOR,
    HEADS,
    INTERPRETED,
    TOLERANCE,
    TYPE,
    exact,
    inputs_of,
    normal,
    on_gpu,
    ours,
    owners,
    poisoned,
)  # fmt: skip
from test_gpu_ssd import pytestmark as pytestmark

from m4v.kernels import ssd_operators
from m4v.kernels.ssd_configs import SEGMENTS, default_config, default_segments

__all__ = ["poisoned"]
NUMBERS = (0, 2) if INTERPRETED else range(len(SEGMENTS))
DEFAULT = default_segments(64, 64, exact=False) or 0


def alone(inputs: list[Tensor], cuts: list[int], softplus: bool, number: int = DEFAULT) -> Tensor:
    """y without gradients."""
    x, dt, a, b, c, skip, bias = inputs
    with torch.no_grad():
        return ssd_operators.ssd(
            x, dt, a, b, c, skip, owners(cuts), bias if softplus else None, softplus, segments=number
        )


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=FLOOR))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "cuts", [[1], [5], [63], [65], [513], [1100], [64, 128, 130], [1, 40, 41, 200], [512, 1000, 1024, 1300]], ids=str
)
def test_odd_lengths_and_columns(cuts: list[int], number: int) -> None:
    """Every value is written: nothing of the poison is left."""
    inputs = inputs_of(cuts[-1], TYPE)
    softplus = len(cuts) == 1
    if not softplus:
        inputs[1] = F.softplus(inputs[1])
    found = alone(inputs, cuts, softplus, number)
    assert found.dtype == TYPE
    wrong = error(found, exact([u.double() for u in inputs], cuts, softplus))
    print(f"{wrong:.1e}")
    assert wrong < TOLERANCE[TYPE]


def test_no_gradients_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default for the sizes of our models; where a gradient may be asked for, chunks' states are written."""
    calls: list[str] = []
    for name in ("ssd_outputs", "_forward"):
        whole = getattr(ssd_operators, name)
        monkeypatch.setattr(
            ssd_operators, name, lambda *given, name=name, whole=whole: (calls.append(name), whole(*given))[1]
        )
    inputs = inputs_of(70, torch.bfloat16 if not INTERPRETED else torch.float16)
    with torch.no_grad():
        first = ours(inputs, [70], True)
        ours(inputs, [70], True, default_config(64, 64, exact=False))
    second = ours(inputs, [70], True)
    assert calls == ["ssd_outputs", "_forward", "_forward"]
    assert error(first, second.double()) < 2 * TOLERANCE[first.dtype]


def test_rows_of_a_wider_projection() -> None:
    x, dt, a, b, c, skip, bias = inputs_of(70, TYPE)
    wide = torch.cat([u.flatten(2) for u in (x, b, c)], dim=2)
    apart = [u.unflatten(2, (HEADS, 64)) for u in wide.chunk(3, dim=2)]
    assert not apart[0].is_contiguous()
    found = alone([apart[0], dt, a, *apart[1:], skip, bias], [70], True)
    assert torch.equal(found, alone([x, dt, a, b, c, skip, bias], [70], True))


def test_nothing_leaks_between_columns() -> None:
    """But for the rounding of decays, which are summed from the start of a chunk."""
    inputs, cuts = inputs_of(700, TYPE), [130, 600, 700]
    inputs[1] = F.softplus(inputs[1])
    first = alone(inputs, cuts, False)
    changed = [u.clone() for u in inputs]
    for number in (0, 1, 3, 4):
        changed[number][:, :130] = normal(90 + number, *changed[number][:, :130].shape).abs().to(changed[number].dtype)
        changed[number][:, 600:] = normal(80 + number, *changed[number][:, 600:].shape).abs().to(changed[number].dtype)
    assert error(alone(changed, cuts, False)[:, 130:600], first[:, 130:600].double()) < TOLERANCE[TYPE]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("length", [70 if INTERPRETED else 15_488])
def test_repetition_gives_the_same_bits_and_those_near_the_other_kernels(length: int, number: int) -> None:
    inputs, cuts = inputs_of(length, TYPE, heads=1 if INTERPRETED else 30), [length // 3, length]
    first = alone(inputs, cuts, True, number)
    for _ in range(1 if INTERPRETED else 20):
        assert torch.equal(alone(inputs, cuts, True, number), first)
    config = default_config(64, 64, exact=INTERPRETED)
    assert error(first, ours(inputs, cuts, True, config).double()) < 2 * TOLERANCE[TYPE]


@on_gpu
def test_offsets_past_two_to_the_31() -> None:
    x, dt, a, b, c, skip, bias = inputs_of(300, TYPE)
    stride = (2**31 // 299 + 64) // 16 * 16
    wide = torch.empty(300 * stride, dtype=TYPE, device=DEVICE)
    far = wide.as_strided((1, 300, HEADS, 64), (0, stride, 64, 1))
    far.copy_(x[:1])
    near, others = x[:1], [dt[:1], a, b[:1], c[:1], skip, bias]
    assert torch.equal(alone([far, *others], [300], True), alone([near, *others], [300], True))


@on_gpu
def test_compiled_without_breaks_and_captured() -> None:
    inputs = inputs_of(1300, TYPE)

    def twice(*leaves: Tensor) -> Tensor:
        return alone(list(leaves), [1300], True) * 2

    assert torch.equal(torch.compile(twice, fullgraph=True, dynamic=False)(*inputs), twice(*inputs))
    graph, other = torch.cuda.CUDAGraph(), inputs_of(1301, TYPE)[0][:, 1:]
    with torch.cuda.graph(graph):
        y = twice(*inputs)
    inputs[0].copy_(other)
    graph.replay()
    assert torch.equal(y, twice(*inputs))
    assert len(y) == BATCH


def test_the_operator_keeps_torchs_rules() -> None:
    x, dt, a, b, c, skip, bias = inputs_of(70, TYPE, heads=1)
    given = (x, dt, a, b, c, skip, owners([30, 70]), bias, True, DEFAULT)
    torch.library.opcheck(ssd_operators.ssd_outputs.library, given, test_utils=("test_schema", "test_faketensor"))
