"""A rank of the scaling benchmark: a stage process that has imported everything before its case's turn comes."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

GATE = "M4V_BENCH_GATE"
SHARED = (
    "pipelines.stage_process", "training.stages.train", "training.engine.fsdp2", "m4v.model", "pyarrow.dataset",
    "torch._dynamo",
)  # fmt: skip


def wait_at(gate: Path) -> None:
    """Import what the stage needs, touch no GPU, and wait for the gate; leave when the agent has gone."""
    for module in SHARED:
        importlib.import_module(module)
    importlib.import_module("training.startup").deepspeed_module()
    agent = os.getppid()
    while not gate.exists():
        if os.getppid() != agent:
            os._exit(1)
        time.sleep(0.02)


if __name__ == "__main__":
    if GATE in os.environ:
        wait_at(Path(os.environ[GATE]))
    from pipelines.stage_process import main

    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
