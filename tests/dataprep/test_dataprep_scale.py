"""The scale benchmark on 110,000 rows: copies are found, versions keep what they must, and memory stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "bench_scale.py"


@pytest.mark.deep
def test_a_generated_manifest_goes_through_all_bookkeeping_in_bounded_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--rows", "110000", "--work", str(tmp_path), "--limit-gib", "1"]
    steps = ["plan", "dedup", "index", "order", "merge", "subset", "remove", "redact"]
    command += ["--steps", *steps]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["step"] for line in lines] == ["generate", *steps]
    assert all(line["peak_gib"] < 1 for line in lines[1:])
    found = {line["step"]: line for line in lines}
    assert (found["dedup"]["exact"], found["dedup"]["near"]) == (100, 500)
    assert found["remove"]["samples"] == 110_000 - 301
    assert not list(tmp_path.iterdir())
