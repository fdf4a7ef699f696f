"""Runs stage processes under torchrun for tests: `torchrun training_faults.py REQUEST...`, one after the other.

`M4V_TEST_FAULT` = `POINT:STEP` makes every rank SIGKILL itself there: `step` after the update of STEP, `shard`
between the ranks' files of the save at STEP and its manifest, `half` in the middle of rank 0's file, `commit`
right after the manifest, `export` while the checkpoint is written.
"""

from __future__ import annotations

import os
import signal
import sys

from m4v.core.storage import Storage
from pipelines.stage_process import main
from training import session
from training.exposure import DebugLog
from training.state import SaveManifest, StateStore


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant(point: str, at: int) -> None:
    """Replace one method by itself followed (or preceded) by death at `at`."""
    if point == "step":
        write = DebugLog.write

        def logged(self: DebugLog, step: int, *rest: object) -> None:
            write(self, step, *rest)  # type: ignore[arg-type]
            if step == at:
                die()

        DebugLog.write = logged  # type: ignore[assignment,method-assign]
    elif point == "half":
        write_bytes = Storage.write_bytes

        def half(self: Storage, path: str, data: bytes) -> None:
            if path.startswith(f"saves/{at:010d}") and "rank-00000" in path:
                self.local_root.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
                self.local_root.joinpath(path).write_bytes(data[: len(data) // 2])
                die()
            write_bytes(self, path, data)

        Storage.write_bytes = half  # type: ignore[method-assign]
    elif point in ("shard", "commit"):
        commit = StateStore.commit

        def committed(self: StateStore, manifest: SaveManifest) -> None:
            if manifest.step == at and point == "shard":
                die()
            commit(self, manifest)
            if manifest.step == at:
                die()

        StateStore.commit = committed  # type: ignore[method-assign]
    elif point == "export":
        session.save_checkpoint = die  # type: ignore[assignment]
    else:
        raise ValueError(point)


if __name__ == "__main__":
    if fault := os.environ.get("M4V_TEST_FAULT"):
        name, _, step = fault.partition(":")
        plant(name, int(step or 0))
    codes = [main([path]) for path in sys.argv[1:]]
    sys.stdout.flush()
    os._exit(max(codes))
