"""What `m4v plan` tells of the training steps and videos that GPUs measured, beside the measured: a table.

python tests/benchmarks/bench_preflight.py          # no GPU; rows of tests/training/preflight_measured.json
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]

from test_training_preflight_measured import GIB, KERNELS, MEASURED, setup_of  # noqa: E402

from eval.config import GenerateConfig  # noqa: E402
from m4v.config import ModelConfig  # noqa: E402
from m4v.core.config import parse  # noqa: E402
from pipelines.generation_cost import cost_of  # noqa: E402
from training.preflight import estimate  # noqa: E402


def main() -> None:
    print("| case | step s: measured, told, told/measured | tokens/s/GPU | peak GiB |\n| --- | --- | --- | --- |")
    for row in MEASURED["training"]:
        found = estimate(setup_of(row))
        assert found is not None
        assert found.step_seconds is not None
        rate = found.tokens_per_step / found.ranks / found.step_seconds
        pairs = (
            (row.get("step_s"), found.step_seconds, ".2f"),
            (row.get("tokens_per_second_per_gpu"), rate, ",.0f"),
            (row["peak_gib"], found.memory_bytes / GIB, ".1f"),
        )
        # Of kernels that were slower the peak alone is kept.
        cells = (f"{a:{form}}, {told:{form}}, {told / a:.2f}" if a else "-" for a, told, form in pairs)
        print(f"| {row['name']} | {' | '.join(cells)} |")
    print("\n| video, text to frames | s: measured, told, told/measured |\n| --- | --- |")
    for row in (row for row in MEASURED["videos"] if "seconds" in row):
        size = {"frames": row["frames"], "height": 768, "width": 1280, "dtype": "bfloat16"}
        config = parse(GenerateConfig, {"prompts": ["one"], **size}, "benchmark")
        told = cost_of(ModelConfig(mixer=row["mixer"]), config, KERNELS[row["kernels"]]).seconds[row["gpu"]]
        case = f"{row['name']}, {row['frames']} frames, {row['gpu']}"
        print(f"| {case} | {row['seconds']:.1f}, {told:.1f}, {told / row['seconds']:.2f} |")


if __name__ == "__main__":
    main()
