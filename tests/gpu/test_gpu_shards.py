"""Blocks on our kernels whose parameters are shared by ranks, which gather them before a block and drop them after it.
On two GPUs, one for each rank, or in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fused_models import INTERPRETED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
# Sums of a GPU's products go by the sizes, and those of two ranks are not those of one.
LIKE_ONE_RANK, LIKE_TORCH = (1e-5, 1e-4) if INTERPRETED else (1e-4, 1e-3)
PROBE = Path(__file__).parent / "fused_shards_probe.py"


def gang(out: Path, what: str) -> dict[str, list[float]]:
    """What two ranks find."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROBE)]
    done = subprocess.run(
        [*command, str(out), what], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[float]] = json.loads(out.read_text())
    print(found)
    return found


def test_sharded_parameters_give_the_same_steps(tmp_path: Path) -> None:
    """ZeRO-3 takes the steps of whole parameters, recomputed blocks too, and of plain torch."""
    pytest.importorskip("deepspeed")
    found = gang(tmp_path / "found.json", "steps")
    plain = found.pop("torch 0 none")
    assert len(found) == 2
    for values in found.values():
        assert values == pytest.approx(found["triton 0 none"], rel=LIKE_ONE_RANK)
        assert values == pytest.approx(plain, rel=LIKE_TORCH)


def test_a_shared_forward_is_that_of_one_rank(tmp_path: Path) -> None:
    """Samples are shared by whole blocks on our kernels; with shared frames the scan and the
    attention between pieces are."""
    found = gang(tmp_path / "found.json", "shared")
    assert set(found) == {"1", "2"}
    assert max(map(max, found.values())) < LIKE_ONE_RANK
