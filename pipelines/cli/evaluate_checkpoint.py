"""`m4v evaluate run CHECKPOINT`: the suite's prompts sampled from it, then measured; both are recorded stages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from eval.config import EvaluateConfig, GenerateConfig
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.preflight import chosen, preflight
from m4v.core.stage import Resources
from pipelines.checkpoint_evaluation import Suite, checkpoint_nodes, sampling_config
from pipelines.environment import file_digest
from pipelines.evaluations import RUN_NAME
from pipelines.execute import PipelineRun
from pipelines.generation.checkpoint import FoundCheckpoint, find_checkpoint
from pipelines.generation_cost import cost_of
from pipelines.keys import CODE_ROOT
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.lookup import known_record
from pipelines.outcomes import NodeEvent
from pipelines.workspace import Workspace

LOCK_FILE = "constraints.txt"


def checkpoint_run(
    workspace: Workspace,
    ledger: Ledger,
    given: str,
    suite: Suite,
    config: VBenchConfig | EvaluateConfig,
    locations: Mapping[str, str],
    resources: Resources,
    prompts: str | None,
    samples_per_prompt: int | None,
    on_event: Callable[[NodeEvent], None],
) -> PipelineRun:
    """A run, not yet started; what it will cost is told first.

    Raises InputError before anything is sampled where the suite cannot measure here."""
    dimensions: tuple[str, ...] = ()
    if isinstance(config, VBenchConfig):
        dimensions = chosen(config, preflight(config, Places.of(locations), device=resources.device))
    found = find_checkpoint(given, {}, ema=True)
    sampling = sampling_config(found, suite, prompts, samples_per_prompt, resources.device, dimensions)
    _tell_cost(found, sampling)
    nodes = checkpoint_nodes(ledger, found, sampling, config, locations, resources)
    resolved = {"checkpoint": found.identity, "generate": sampling.canonical(), nodes[-1].id: config.canonical()}
    return PipelineRun(
        RUN_NAME, resolved, nodes, workspace, ledger=ledger, launcher=_launcher(ledger, found), on_event=on_event
    )


def _launcher(ledger: Ledger, found: FoundCheckpoint) -> LocalLauncher:
    """With the lock file that the checkpoint was made under, where that is the one here: what its recipe has sampled is
    a hit then."""
    lock = CODE_ROOT / LOCK_FILE
    made_under = known_record(ledger.producers(found.identity)[-1]).lock_digest
    return LocalLauncher(str(lock) if lock.is_file() and file_digest(lock) == made_under else None)


def _tell_cost(found: FoundCheckpoint, sampling: GenerateConfig) -> None:
    cost = cost_of(found.config.model, sampling)
    hours = ", ".join(f"{name} {value:.3g}" for name, value in cost.gpu_hours.items())
    size = f"{sampling.width}x{sampling.height}, {sampling.frames} frames"
    sys.stderr.write(f"{cost.videos} videos of {cost.prompts} prompts ({size}) as {found.origin or 'told'}; "
                     f"GPU-hours to sample them: {hours}\n")  # fmt: skip
