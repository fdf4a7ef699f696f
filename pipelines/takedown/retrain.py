"""The retrain plan: which recipes, run again, cure the channels and checkpoints that a takedown touched.

A re-run keeps the clips out by the block list, so its curation, and from there on what depends on it, has new keys;
its dataset has the samples of the version that the takedown wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from m4v.core.canonical import digest_json
from m4v.core.config import parse
from m4v.core.errors import M4VError
from pipelines.impact import Impact, Verdict
from pipelines.launchers import Launcher
from pipelines.ledger import Ledger, PipelineRunRow
from pipelines.lookup import Lookup
from pipelines.plan import Plan, PlanStatus, make_plan


@dataclass(frozen=True)
class Cure:
    """A recipe to run again: `channels` and `checkpoints` are what it cures. `plan` is None, with the reason in
    `note`, where the recorded recipe is none of this program's."""

    recipe: str
    recipe_digest: str
    pipeline_run_id: str
    channels: tuple[str, ...]
    checkpoints: tuple[str, ...]
    command: str
    plan: Plan | None
    note: str = ""

    def again(self) -> list[str]:
        """Stages that run again, in their order; the others are cache hits."""
        return [s.node_id for s in self.plan.steps if s.status is not PlanStatus.HIT] if self.plan else []

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe, "recipe_digest": self.recipe_digest, "pipeline_run_id": self.pipeline_run_id,
            "channels": list(self.channels), "checkpoints": list(self.checkpoints), "command": self.command,
            "runs_again": self.again(), "note": self.note, "plan": self.plan.to_json() if self.plan else None,
        }  # fmt: skip


def retrain_plans(ledger: Ledger, launcher: Launcher, found: Impact) -> list[Cure]:
    """One plan a recipe that made affected checkpoints, those of channels first.

    Checkpoints that merely contain a clip upstream are listed only where a channel names them: no step saw the clip.
    One whose exposure is not known counts as one that saw it.
    """
    channels = {c.artifact_id: c.name for c in found.channels if c.current}
    touched = [c.artifact_id for c in found.checkpoints if c.verdict is not Verdict.CONTAINS]
    touched += sorted(_unknown(ledger, found))
    by_recipe: dict[str, tuple[PipelineRunRow, list[str]]] = {}
    for checkpoint in dict.fromkeys([*channels, *touched]):
        run = _made_by(ledger, checkpoint)
        if run is not None:
            by_recipe.setdefault(run.recipe_digest, (run, []))[1].append(checkpoint)
    return [
        _cure(ledger, launcher, run, checkpoints, [channels[c] for c in checkpoints if c in channels])
        for run, checkpoints in by_recipe.values()
    ]


def _unknown(ledger: Ledger, found: Impact) -> set[str]:
    """Checkpoints that come from an affected dataset and of which the ledger cannot say whether they saw a clip."""
    unread = set(found.unread)
    reached = (ledger.lineage_down(dataset).artifacts for dataset in found.holding("dataset")) if unread else ()
    return {artifact_id for artifacts in reached for artifact_id in artifacts if artifact_id in unread}


def _made_by(ledger: Ledger, checkpoint: str) -> PipelineRunRow | None:
    """The newest pipeline run that made a checkpoint; None for one that was imported."""
    ids = [ledger.attempt(run.attempt_id).pipeline_run_id for run in ledger.producers(checkpoint)]
    return max((ledger.pipeline_run(i) for i in ids if i), key=lambda run: run.pipeline_run_id, default=None)


def _cure(
    ledger: Ledger, launcher: Launcher, run: PipelineRunRow, checkpoints: Sequence[str], channels: Iterable[str]
) -> Cure:  # fmt: skip
    from pipelines.graph import build_graph
    from pipelines.recipe import Recipe

    plan, note, command = None, "", ""
    try:
        recipe = parse(Recipe, run.resolved, f"pipeline run {run.pipeline_run_id}")
        plan = make_plan(recipe.name, build_graph(recipe), Lookup(ledger, launcher))
        command = _command(run)
    except M4VError as error:
        note = error.message
    return Cure(
        run.recipe, run.recipe_digest, run.pipeline_run_id, tuple(sorted(set(channels))), tuple(checkpoints),
        command, plan, note,
    )  # fmt: skip


def _command(run: PipelineRunRow) -> str:
    """What runs this very recipe again, in whatever directory: by its name, or else as it was recorded."""
    from pipelines.recipe import load_recipe, shipped_recipes

    if run.recipe in shipped_recipes() and digest_json(load_recipe(run.recipe).canonical()) == run.recipe_digest:
        return f"m4v run {run.recipe}"
    return f"m4v runs rerun {run.pipeline_run_id}"
