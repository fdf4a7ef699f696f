"""Training stages under torchrun on a small dataset, killed where a test says, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from training_helpers import clips, publish, request, write_dataset
from training_nursery import Gang, Nursery

from m4v.core.artifacts import ArtifactKind
from m4v.core.stage import StageContext
from training.config import InitConfig, TrainConfig
from training.exposure import surviving_line
from training.stages import init

SCRIPT = Path(__file__).parent / "training_faults.py"


def torchrun(ranks: int) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--monitor-interval=0.1"]
    return [*command, f"--nproc-per-node={ranks}"]


@dataclass
class Bench:
    """Inputs of a training stage, and runs of it in named folders: under torchrun, or forked where a nursery is. A lone
    rank on a GPU is a process of its own, without an agent that imports everything once more."""

    root: Path
    inputs: list[tuple[str, ArtifactKind, str, Path]]
    config: TrainConfig
    device: str = "cpu"
    nursery: Nursery | None = None
    script: Path = SCRIPT

    def write(self, name: str, config: TrainConfig, ranks: int, attempt: int) -> Path:
        work = self.root / name / f"attempt-{attempt}"
        state = self.root / name / "state"
        made = request(
            "train", config, work, self.inputs, ranks=ranks, attempt=f"{attempt:08d}", state=state, device=self.device,
            deterministic=config.engine.deterministic,
        )  # fmt: skip
        (work / "request.json").write_text(made.model_dump_json())
        return work

    def arguments(self, works: list[Path]) -> list[str]:
        return [str(self.script), *(str(w / "request.json") for w in works)]

    def start(self, name: str, ranks: int, works: list[Path], fault: str = "") -> subprocess.Popen[bytes] | Gang:
        own = {"M4V_EXPOSURE_LOG": str(self.root / name / "log"), "M4V_TEST_FAULT": fault}
        if self.nursery is not None:
            return self.nursery.start(ranks, self.arguments(works), works[0] / "output.log", own)
        environment = {
            **os.environ, **own, "OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": "",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        log = (works[0] / "output.log").open("wb")
        before = [sys.executable] if ranks == 1 and self.device == "cuda" else torchrun(ranks)
        return subprocess.Popen([*before, *self.arguments(works)], env=environment, stdout=log, stderr=log)

    def run(
        self, name: str, config: TrainConfig | None = None, ranks: int = 2, attempt: int = 0, fault: str = ""
    ) -> Path:
        work = self.write(name, config or self.config, ranks, attempt)
        self.start(name, ranks, [work], fault).wait()
        return work

    def line(self, name: str, config: TrainConfig | None = None) -> list[list[tuple[int, str, int]]]:
        config = config or self.config
        return surviving_line(self.root / name / "log", config.name, config.steps)


def digest(work: Path) -> str:
    """Id of the checkpoint artifact that a finished run left."""
    assert (work / "result.json").exists(), (work / "output.log").read_text()[-3000:]
    return str(json.loads((work / "result.json").read_text())["outputs"][0]["artifact_id"])


def checkpoint(work: Path) -> Path:
    return work / "staging" / "checkpoint"


def make_bench(root: Path, start: InitConfig, config: TrainConfig, device: str = "cpu", **size: int) -> Bench:
    """A dataset of nine videos and four images, of `size` (t, h, w), and the initial checkpoint."""
    dataset = write_dataset(root / "dataset", clips(videos=9, images=4, **size))
    context = StageContext(request("init", start, root / "init"))
    init.run(context)
    context.progress.close()
    artifact, folder = publish(context)
    return Bench(
        root,
        [("dataset", ArtifactKind.DATASET, dataset, root / "dataset"),
         ("checkpoint", ArtifactKind.CHECKPOINT, artifact, folder)],
        config,
        device,
    )  # fmt: skip
