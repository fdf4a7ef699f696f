"""A plan with all that is told beside it, for the command line, the page and JSON alike.

JSON of `m4v plan --json`: the plan's own, with `missing` [{stages, problem, next_steps}] first things first, `next`
(commands, in order), `preflight`, `generation`, `suites` and `suite_costs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.vbench.config import TITLES
from eval.vbench.preflight import Preflight as SuitePreflight
from pipelines.evaluations import suite_preflights
from pipelines.generation_cost import GenerationCost, generation_costs
from pipelines.ledger import Ledger
from pipelines.plan import Plan, PlanStatus, PlanStep
from pipelines.preflight import Preflight, kernels_of, preflight, with_estimates
from pipelines.recipe import Recipe
from pipelines.spec import StageNode
from pipelines.suite_cost import SuiteCost, suite_costs

CHECK = "m4v evaluate run --check"  # lists every file
SHOWN_STAGES = 5


@dataclass(frozen=True)
class Missing:
    """Something that is not here and that `stages` cannot run before; `next_steps`: what brings it."""

    stages: tuple[str, ...]
    problem: str
    next_steps: tuple[str, ...] = ()

    @property
    def needed_by(self) -> str:
        """The stages, many of them counted."""
        few = len(self.stages) <= SHOWN_STAGES
        return ", ".join(self.stages) if few else f"{self.stages[0]} and {len(self.stages) - 1} more"


@dataclass(frozen=True)
class PlanView:
    """`videos`: what stages that sample cost; `suites`: what measuring needs on this machine, and `judged` its cost."""

    plan: Plan
    training: dict[str, Preflight]
    videos: dict[str, GenerationCost]
    suites: dict[str, SuitePreflight]
    judged: dict[str, SuiteCost]
    gpu: str | None = None  # type that the profile names
    command: str | None = None  # that runs this plan

    @property
    def judged_suites(self) -> dict[str, SuiteCost]:
        """Without local metrics, whose cost is next to nothing."""
        return {node: each for node, each in self.judged.items() if node in self.suites}

    @property
    def missing(self) -> list[Missing]:
        """In the order of the plan, what is the same for several stages once; stages that do not fit their GPUs, and
        what suites lack, at the end."""
        found: dict[str, list[PlanStep]] = {}
        for step in self.plan.steps:
            if step.status is PlanStatus.MISSING:
                found.setdefault(step.problem or step.reason, []).append(step)
        rows = [
            Missing(
                tuple(s.node_id for s in steps),
                problem,
                tuple(dict.fromkeys(filter(None, (s.next_step for s in steps)))),
            )
            for problem, steps in found.items()
        ]
        for node, each in self.training.items():
            if (refusal := each.refusal) is not None:
                rows.append(Missing((node,), refusal.problem, (refusal.next_step,) if refusal.next_step else ()))
        return rows + [
            self._lacking(node, suite)
            for node, suite in self.suites.items()
            if any(r.problem for r in suite.requirements)
        ]

    def _lacking(self, node: str, suite: SuitePreflight) -> Missing:
        """In one line what tables of dimensions, environments and files say in many."""
        lacking = [r for r in suite.requirements if r.problem]
        environments = list(dict.fromkeys(r.name for r in lacking if r.kind == "environment"))
        files = sum(r.kind != "environment" for r in lacking)
        parts = (
            [f"environment{'s' if len(environments) > 1 else ''} {' and '.join(environments)}"] if environments else []
        )
        parts += [f"{files} file{'s' if files > 1 else ''} or folders of weights"] if files else []
        name = TITLES[self.judged[node].suite if node in self.judged else "vbench"]
        steps = [r.next_step for r in lacking if r.next_step and r.kind == "environment"]
        return Missing(
            (node,),
            f"{len(suite.available)} of {len(suite.dimensions)} dimensions of {name} can be measured on this machine: "
            f"{' and '.join(parts)} cannot be used",
            (*dict.fromkeys(steps), *([CHECK] if files else [])),
        )

    @property
    def next_steps(self) -> list[str]:
        """What to do, in order; to run the plan, where nothing is missing."""
        missing = self.missing
        if not missing:
            return [] if self.plan.all_hits or self.command is None else [self.command]
        return list(dict.fromkeys(step for each in missing for step in each.next_steps))

    def to_json(self) -> dict[str, Any]:
        return {
            **self.plan.to_json(),
            "missing": [asdict(each) for each in self.missing],
            "next": self.next_steps,
            "preflight": {node: each.to_json() for node, each in self.training.items()},
            "generation": {node: each.to_json() for node, each in self.videos.items()},
            "suites": {node: each.canonical() for node, each in self.suites.items()},
            "suite_costs": {node: each.to_json() for node, each in self.judged.items()},
        }


def view_of(
    recipe: Recipe, nodes: Sequence[StageNode], made: Plan, ledger: Ledger, command: str | None = None
) -> PlanView:
    """The plan `made` of a recipe's `nodes` with its estimates; times of training stages that never ran are theirs.
    `command` is what runs it, where one does."""
    training = preflight(recipe, nodes, made, ledger)
    plan, gpu = with_estimates(made, training), recipe.active_profile.gpu
    videos = generation_costs(nodes, plan, kernels_of(recipe.active_profile))
    return PlanView(
        plan, training, videos, suite_preflights(nodes, plan), suite_costs(nodes, plan, videos), gpu, command
    )
