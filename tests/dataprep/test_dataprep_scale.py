"""The scale benchmark on 110,000 rows: it finds the generated copies, and memory stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_scale.py"


@pytest.mark.deep
def test_a_generated_manifest_goes_through_dedup_index_and_order_in_bounded_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--rows", "110000", "--work", str(tmp_path), "--limit-gib", "1"]
    command += ["--steps", "dedup", "index", "order"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["step"] for line in lines] == ["generate", "dedup", "index", "order"]
    assert all(line["peak_gib"] < 1 for line in lines[1:])
    assert (lines[1]["exact"], lines[1]["near"]) == (100, 500)
    assert not list(tmp_path.iterdir())
