"""Sizes of our Mamba-2 scan that the product does not use on a GPU, since they were wrong there: see `ssd_configs`.

Each runs in a process of its own and prints what it found. One that passes belongs into `SHOWN_OF_...`.
"""

import pytest
import torch
from test_gpu_ssd import CUDA, INTERPRETED, inputs_of, ours, probe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED or not CUDA, reason="needs the compiled kernels")]


@pytest.mark.xfail(reason="wrong on Hopper with Triton 3.6", strict=False)
@pytest.mark.parametrize(
    "words",
    [("kernels", "32", "128", "bfloat16"), ("kernels", "16", "16", "float32"), ("rules", "16", "16", "float32")],
)
def test_sizes_that_were_wrong(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    found = probe(*words, limit_s=60)
    with capfd.disabled():
        print("", *words, found.stdout, found.stderr[-2000:], sep="\n")
    assert found.returncode == 0


@pytest.mark.parametrize(("size", "state", "kind"), [(32, 128, torch.bfloat16), (16, 16, torch.float32)])
def test_sizes_that_were_wrong_are_refused(size: int, state: int, kind: torch.dtype) -> None:
    with pytest.raises(ValueError, match="not shown right on a GPU"):
        ours(inputs_of(4, kind, size, state), [4], True)
