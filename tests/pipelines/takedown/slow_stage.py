"""A stage that reads a dataset until it is drained, as training does."""

import time

from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.stage import StageContext
from pipelines.spec import InputSpec, StageSpec


class SlowConfig(FrozenModel):
    seconds: float = 600.0
    stubborn: bool = False  # does not look whether it shall stop
    kept: bool = False  # leaves resume state and scratch
    fails: bool = False


def run(context: StageContext) -> None:
    config = context.config(SlowConfig)
    if config.kept:
        context.state.write_bytes("step-1", b"what it saw")
        (context.work_dir / "scratch").mkdir(exist_ok=True)
        (context.work_dir / "scratch" / "frame").write_bytes(b"a frame")
    if config.fails:
        raise ValueError("it fails")
    began = time.monotonic()
    while (left := config.seconds - (time.monotonic() - began)) > 0:
        context.progress.update(config.seconds - left, config.seconds, "seconds")
        if not config.stubborn:
            context.check_drain()
        time.sleep(0.05)
    (context.output("samples") / "done.txt").write_text(context.input("dataset").id)


SLOW = StageSpec(
    name="slow", version=1, function="slow_stage:run", config_model="slow_stage:SlowConfig",
    inputs={"dataset": InputSpec(ArtifactKind.DATASET)}, outputs={"samples": ArtifactKind.SAMPLES},
)  # fmt: skip
