"""Blocks on our kernels whose parameters are shared by ranks, which gather them before a block and drop them after it.
In Triton's interpreter alone: it needs two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fused_models import INTERPRETED

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")]
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
        assert values == pytest.approx(found["triton 0 none"], rel=1e-5)
        assert values == pytest.approx(plain, rel=1e-4)


def test_a_shared_forward_is_that_of_one_rank(tmp_path: Path) -> None:
    """Samples are shared by whole blocks on our kernels; with shared frames only the scan is ours."""
    found = gang(tmp_path / "found.json", "shared")
    assert set(found) == {"1", "2"}
    assert max(map(max, found.values())) < 1e-5
