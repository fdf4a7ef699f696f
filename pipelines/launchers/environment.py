"""Environment variables of every stage process, wherever it runs: what decides its bytes is set, not inherited."""

from __future__ import annotations

import os
from pathlib import Path

from m4v.core.stage import StageRequest
from pipelines.keys.code import CODE_ROOT
from pipelines.processes import WORK_DIR_VARIABLE


def stage_environment(request: StageRequest, work_dir: Path) -> dict[str, str]:
    """What is added to the environment that the launcher's process has."""
    threads = str(request.resources.threads)
    path = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),  # the very files that were hashed into the key
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        WORK_DIR_VARIABLE: f"{work_dir}/",
    }
