"""Samples of the ledger evaluated by a suite, recorded as a pipeline run of its own.

run = evaluation_run(workspace, ledger, launcher, samples_id, VBenchConfig(), locations)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eval.config import EvaluateConfig
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.preflight import Preflight, preflight
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from m4v.core.stage import Resources
from pipelines.checkpoint_evaluation import measuring_stage
from pipelines.dataset_versions import pinned_node
from pipelines.execute import NodeEvent, PipelineRun
from pipelines.launchers import Launcher
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.plan import Plan, PlanStatus
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

RUN_NAME = "evaluation"  # stands where runs of a recipe have their name, and is no recipe's


def samples_of(ledger: Ledger, given: str) -> ArtifactRow:
    """The samples with this id or beginning; raises InputError for another artifact, saying what to do with it."""
    row = ledger.artifact(given)
    if row.kind != ArtifactKind.SAMPLES:
        step = "m4v artifacts list --kind samples"
        if row.kind == ArtifactKind.CHECKPOINT:
            step = f"m4v evaluate run {given} samples it first"
        raise InputError(f"a suite evaluates samples, this is of kind {row.kind}", value=given, next_step=step)
    return row


def suite_preflights(nodes: Sequence[StageNode], plan: Plan) -> dict[str, Preflight]:
    """What the suites of a plan need on this machine, by node, before their first video is sampled; of a cache hit
    nothing."""
    hits = {step.node_id for step in plan.steps if step.status is PlanStatus.HIT}
    shown = {step.node_id for step in plan.steps} - hits
    return {
        node.id: preflight(node.config, Places.of(node.locations), device=node.resources.device)
        for node in nodes
        if node.id in shown and isinstance(node.config, VBenchConfig)
    }


def node_of(config: VBenchConfig | EvaluateConfig) -> str:
    """The node that makes the scores."""
    return measuring_stage(config).name


def evaluation_run(
    workspace: Workspace,
    ledger: Ledger,
    launcher: Launcher,
    samples: str,
    config: VBenchConfig | EvaluateConfig,
    locations: Mapping[str, str],
    resources: Resources | None = None,
    on_event: Callable[[NodeEvent], None] = lambda _: None,
) -> PipelineRun:
    """A run, not yet started, whose last node (`vbench`, or `evaluate` for the local metrics) makes the scores; the
    same evaluation again is a cache hit."""
    pinned = pinned_node(ledger, samples_of(ledger, samples))
    node = StageNode(
        id=node_of(config), spec=measuring_stage(config), config=config, inputs={"samples": (pinned.id, "samples")},
        locations=dict(locations), resources=resources or Resources(ranks=1, threads=1, workers=1),
    )  # fmt: skip
    resolved = {"samples": pinned.id, **config.canonical()}
    return PipelineRun(
        RUN_NAME, resolved, [pinned, node], workspace, ledger=ledger, launcher=launcher, on_event=on_event
    )
