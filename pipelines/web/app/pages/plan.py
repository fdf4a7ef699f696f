"""Plan view: what a run of a recipe would do now, and why. Recipes are shipped ones and those of earlier runs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from m4v.core.config import parse
from m4v.core.errors import ConfigError
from pipelines.compare.plans import compare_plan
from pipelines.graph import build_graph
from pipelines.ledger import Ledger, PipelineRunRow
from pipelines.lookup import Lookup
from pipelines.plan import hours_text, make_plan
from pipelines.plan_view import view_of
from pipelines.recipe import Recipe, load_recipe
from pipelines.recipe_files import shipped_recipes
from pipelines.session import has_recipe, launcher_of
from pipelines.web.app.site import LedgerDep
from pipelines.web.app.views import page

router = APIRouter()
_OFFERED, _LOOKED_AT = 50, 200  # runs; those without a recipe are passed over


@router.get("/plan")
def plan(request: Request, ledger: LedgerDep, recipe: str = "", run: str = "", diff: str = "") -> HTMLResponse:
    """`recipe` is a shipped one's name, or `run` a pipeline run whose resolved recipe is planned again. `diff` names a
    pipeline run, a channel or a checkpoint to hold the plan against."""
    earlier = [row for row in ledger.pipeline_runs(limit=_LOOKED_AT) if has_recipe(row)][:_OFFERED]
    chosen = _chosen(ledger, recipe.strip(), run.strip())
    view = against = None
    if chosen is not None:
        nodes = build_graph(chosen)
        lookup = Lookup(ledger, launcher_of(chosen.active_profile))
        made = make_plan(chosen.name, nodes, lookup, tolerant=not diff.strip())
        # What ran an earlier run may have been more than its recipe's name.
        command = None if run.strip() else f"m4v run {recipe.strip()}"
        view = view_of(chosen, nodes, made, ledger, command)
        against = compare_plan(ledger, view.plan, nodes, diff.strip()) if diff.strip() else None
    return page(
        request, "plan", here="plan", view=view, hours_text=hours_text, chosen=chosen, recipe=recipe.strip(),
        run=run.strip(), recipes=_described(), earlier=earlier, diff=diff.strip(), against=against,
        channels=sorted({row.name for row in ledger.channel_history()}),
    )  # fmt: skip


def _chosen(ledger: Ledger, recipe: str, run: str) -> Recipe | None:
    if run:
        row: PipelineRunRow = ledger.pipeline_run(run)
        if not has_recipe(row):
            raise ConfigError(
                "this pipeline run was made from no recipe", value=row.pipeline_run_id, where=row.recipe,
                next_step="choose a run of a recipe",
            )  # fmt: skip
        return parse(Recipe, dict(row.resolved), f"recipe of run {row.pipeline_run_id}")
    if not recipe:
        return None
    if recipe not in shipped_recipes():  # never a path: what a visitor may name is not a file of this machine
        raise ConfigError(
            "this is no shipped recipe", value=recipe, next_step=f"use one of {', '.join(shipped_recipes())}"
        )
    return load_recipe(recipe)


def _described() -> list[tuple[str, str]]:
    """Name and description of each shipped recipe."""
    return [(name, load_recipe(name).description) for name in shipped_recipes()]
