"""One recipe opened on one workspace: what the CLI, Prefect flows and deployments all start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from m4v.core.config import parse
from m4v.core.errors import InputError
from pipelines.channels import promote_run
from pipelines.execute import NodeEvent, PipelineRun
from pipelines.exports.courier import Courier
from pipelines.graph import build_graph, node_by_id
from pipelines.keys import CODE_ROOT
from pipelines.launchers import Launcher, LocalLauncher
from pipelines.launchers.slurm import SlurmLauncher
from pipelines.ledger import Ledger, PipelineRunRow
from pipelines.lookup import Lookup
from pipelines.plan import Plan, make_plan
from pipelines.recipe import Profile, Recipe, load_recipe
from pipelines.settings import Settings, load_settings
from pipelines.spec import StageNode, until_node
from pipelines.workspace import Workspace


def _ignore(_: NodeEvent) -> None:
    return None


@dataclass(frozen=True)
class Session:
    """A resolved recipe with its stage nodes, workspace, ledger and launcher."""

    recipe: Recipe
    nodes: tuple[StageNode, ...]
    workspace: Workspace
    ledger: Ledger
    launcher: Launcher
    notes: tuple[str, ...] = ()  # what stands in for what in a rehearsal

    def plan(self, until: str | None = None, *, tolerant: bool = False) -> Plan:
        """What a run would do now; reads ledger and store, changes nothing. `tolerant` as in `make_plan`."""
        lookup = Lookup(self.ledger, self.launcher)
        return make_plan(self.recipe.name, until_node(self.nodes, until), lookup, tolerant=tolerant)

    def new_run(
        self,
        until: str | None = None,
        *,
        trigger: str = "cli",
        deep_verify: bool = False,
        on_event: Callable[[NodeEvent], None] = _ignore,
    ) -> PipelineRun:
        """Record the start of a pipeline run; raises ConfigError when there is no stage `until`, or for settings that
        are wrong. Its events go to the workspace's sinks while it works."""
        settings = load_settings(self.workspace)
        sinks = settings.sinks
        courier = Courier(self.workspace, sinks, lambda text: on_event(NodeEvent("note", "sinks", text)))
        return PipelineRun(
            self.recipe.name,
            self.recipe.canonical(),
            self.nodes,
            self.workspace,
            ledger=self.ledger,
            launcher=self.launcher,
            until=until,
            trigger=trigger,
            deep_verify=deep_verify,
            promote=self._promotion(settings),
            on_event=on_event,
            courier=courier,
        )

    def _promotion(self, settings: Settings) -> Callable[[str, str], str] | None:
        """What a run of the recipe does with a checkpoint whose gate passed: (pipeline run, checkpoint) -> words."""
        wanted = self.recipe.promote
        if wanted is None:
            return None
        channel, ledger = wanted.channel, self.ledger
        return lambda run_id, checkpoint: promote_run(ledger, settings, run_id, checkpoint, channel)

    def upstream_of(self, node_id: str) -> list[str]:
        """Everything a stage needs, in topological order, itself left out."""
        node_by_id(list(self.nodes), node_id)
        return [node.id for node in until_node(self.nodes, node_id) if node.id != node_id]


def open_session(
    recipe: str, overrides: Iterable[str] = (), home: str | None = None, *, rehearse: bool = False
) -> Session:
    """Load the recipe, or its rehearsal, then open workspace and ledger; raises ConfigError or InputError."""
    loaded = load_recipe(recipe, overrides)
    if not rehearse:
        return _open(loaded, home)
    from pipelines.rehearsal import rehearse as rehearsal_of

    made = rehearsal_of(loaded)
    return _open(made.recipe, home, made.notes)


def _open(recipe: Recipe, home: str | None, notes: tuple[str, ...] = ()) -> Session:
    nodes = tuple(build_graph(recipe))
    workspace = Workspace.open(home)
    launcher = launcher_of(recipe.active_profile)
    return Session(recipe, nodes, workspace, Ledger.open(workspace.ledger_url), launcher, notes)


def has_recipe(row: PipelineRunRow) -> bool:
    """Whether the run was made from a recipe: evaluations, imports, studies and dataset versions are made from none."""
    return "sources" in row.resolved and "train" in row.resolved


def recorded_session(row: PipelineRunRow, home: str | None = None) -> Session:
    """The recipe of an earlier pipeline run as it was resolved then, whatever its file says now.

    Raises InputError for a run of no recipe, ConfigError when this release reads its keys differently.
    """
    if not has_recipe(row):
        raise InputError("this pipeline run was made from no recipe", value=row.pipeline_run_id, where=row.recipe)
    recipe = parse(Recipe, row.resolved, f"recorded recipe of run {row.pipeline_run_id}")
    return _open(recipe, home)


def launcher_of(profile: Profile) -> Launcher:
    """A profile's launcher. A relative lock file stands beside the packages, as in a checkout."""
    lock_file = None if profile.lock_file is None else str(CODE_ROOT / profile.lock_file)
    if profile.launcher == "slurm":
        return SlurmLauncher(profile.slurm_config, lock_file, profile.hang)
    return LocalLauncher(lock_file, hang=profile.hang)
