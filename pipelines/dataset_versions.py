"""A new dataset version from datasets of the ledger, recorded as a pipeline run of its own.

node = version_nodes(ledger, [dataset_id], config)[-1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import ConfigDict

from dataprep.versions.config import VersionConfig
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, InputError
from pipelines import stages
from pipelines.execute import NodeEvent, PipelineRun
from pipelines.launchers import Launcher
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.lookup import PINNED
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

NODE = "version"
RUN_NAME = "dataset version"  # stands where runs of a recipe have its name, and is no recipe's


class RecordedConfig(FrozenModel):
    """The config of a committed run, as it stands in the ledger."""

    model_config = ConfigDict(extra="allow")


def version_nodes(ledger: Ledger, datasets: Sequence[str], config: VersionConfig) -> list[StageNode]:
    """The datasets (ids or unique prefixes), pinned, and the node that makes the version, last.

    Raises InputError for a dataset that the ledger does not know, ConfigError for one given twice.
    """
    nodes: list[StageNode] = []
    for given in datasets:
        nodes.append(pinned_node(ledger, ledger.artifact(given, ArtifactKind.DATASET)))
    ids = [node.id for node in nodes]
    if len(set(ids)) != len(ids):
        raise ConfigError("a dataset stands twice among the inputs", value=list(datasets))
    inputs = {f"dataset.{number}": (node_id, "dataset") for number, node_id in enumerate(ids)}
    return [*nodes, StageNode(id=NODE, spec=stages.VERSION, config=config, inputs=inputs)]


def pinned_node(ledger: Ledger, row: ArtifactRow) -> StageNode:
    """A node that is an artifact of the ledger, whatever made it; its output has the name of the artifact's kind.

    Raises InputError for an artifact that no run made.
    """
    runs = ledger.producers(row.artifact_id)
    if not runs:
        raise InputError("no run of this ledger made the artifact", value=row.artifact_id, where=str(row.kind))
    return StageNode(
        id=f"{row.kind}.{row.artifact_id[:12]}",
        spec=replace(next(spec for spec in stages.ALL if spec.name == runs[-1].stage), inputs={}),
        config=RecordedConfig.model_validate(runs[-1].config),
        locations={str(row.kind): f"{PINNED}{row.artifact_id}"},
    )


def version_run(
    workspace: Workspace,
    ledger: Ledger,
    launcher: Launcher,
    datasets: Sequence[str],
    config: VersionConfig,
    on_event: Callable[[NodeEvent], None] = lambda _: None,
) -> PipelineRun:
    """A run, not yet started, whose node `version` makes the dataset; the same operation again is a cache hit."""
    nodes = version_nodes(ledger, datasets, config)
    resolved = {"datasets": [node.id for node in nodes[:-1]], **config.canonical()}
    return PipelineRun(
        RUN_NAME, resolved, nodes, workspace, ledger=ledger, launcher=launcher, on_event=on_event
    )  # fmt: skip
