"""Human-preference studies of a workspace: made from sample sets, served, and their results, each a recorded run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.records import read_record
from eval.study.answers import AnswerStore
from eval.study.config import ResultsConfig, StudyConfig
from eval.study.records import RESULTS, STUDY, Study, StudyResults
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import canonical_json, digest_bytes
from m4v.core.errors import InputError
from m4v.core.storage import write_atomic
from pipelines import stages
from pipelines.dataset_versions import pinned_node
from pipelines.execute import NodeEvent, PipelineRun
from pipelines.launchers import Launcher
from pipelines.ledger import ArtifactDeleted, Ledger
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

CREATE_NAME, RESULTS_NAME = "study", "study results"  # stand where runs of a recipe have its name
NODE = "study"
_FOLDER_CHARS = 16


@dataclass(frozen=True)
class OpenStudy:
    """A study of the ledger: what it shows, its videos, and where its answers lie."""

    artifact: Artifact
    study: Study
    folder: Path

    @property
    def id(self) -> str:
        return self.artifact.id

    def media(self, file: str) -> Path:
        """Local path of a video, fetched and checked where the store is remote."""
        return self.artifact.path(file)

    def answers(self) -> AnswerStore:
        return AnswerStore(self.folder / "answers.db", self.id)

    def read_answers(self) -> AnswerStore:
        """Raises InputError where nobody was invited yet, rather than make an empty file."""
        if not (self.folder / "answers.db").exists():
            raise InputError(
                "the study has no answers yet", value=self.id, next_step=f"m4v study invite {self.id[:12]} --count N"
            )
        return self.answers()


def open_study(workspace: Workspace, ledger: Ledger, given: str) -> OpenStudy:
    """By id or unique prefix; raises InputError for what is no study, ArtifactDeleted for one whose bytes went."""
    row = ledger.artifact(given, ArtifactKind.REPORT)
    if row.deletion is not None:
        raise ArtifactDeleted(row.artifact_id, row.kind, row.deleted_at)
    artifact = Artifact(row.uri, row.artifact_id, row.kind, workspace.cache)
    if STUDY not in artifact.names():
        raise InputError("this is a report and no study", value=row.artifact_id, next_step="m4v study create makes one")
    folder = workspace.home / "studies" / row.artifact_id[:_FOLDER_CHARS]
    return OpenStudy(artifact, read_record(Study, artifact, STUDY), folder)


def create_run(
    workspace: Workspace,
    ledger: Ledger,
    launcher: Launcher,
    samples: Mapping[str, str],
    config: StudyConfig,
    on_event: Callable[[NodeEvent], None] = lambda _: None,
) -> PipelineRun:
    """A run, not yet started, whose node `study` makes the study; `samples`: system -> id or prefix of its samples."""
    pinned = {
        name: pinned_node(ledger, ledger.artifact(given, ArtifactKind.SAMPLES)) for name, given in samples.items()
    }
    inputs = {f"samples.{name}": (node.id, next(iter(node.spec.outputs))) for name, node in pinned.items()}
    nodes = list({node.id: node for node in pinned.values()}.values())
    study = StageNode(id=NODE, spec=stages.STUDY, config=config, inputs=inputs)
    return PipelineRun(
        CREATE_NAME, config.canonical(), [*nodes, study], workspace, ledger=ledger, launcher=launcher, on_event=on_event
    )  # fmt: skip


def results_run(
    workspace: Workspace,
    ledger: Ledger,
    launcher: Launcher,
    study: OpenStudy,
    *,
    keep_all: bool = False,
    on_event: Callable[[NodeEvent], None] = lambda _: None,
) -> PipelineRun:
    """A run, not yet started, of the answers as they stand now; the same answers again are a cache hit."""
    with study.read_answers() as answers:
        data = canonical_json(answers.snapshot().canonical())
    digest, place = digest_bytes(data), study.folder / "snapshots"
    write_atomic(place / f"{digest}.json", data)
    pinned = pinned_node(ledger, ledger.artifact(study.id, ArtifactKind.REPORT))
    config = ResultsConfig(answers=digest, keep_all=keep_all)
    node = StageNode(
        id=NODE, spec=stages.STUDY_RESULTS, config=config, locations={"answers": str(place)},
        inputs={"study": (pinned.id, next(iter(pinned.spec.outputs)))},
    )  # fmt: skip
    return PipelineRun(
        RESULTS_NAME, config.canonical(), [pinned, node], workspace,
        ledger=ledger, launcher=launcher, on_event=on_event,
    )  # fmt: skip


def read_results(workspace: Workspace, ledger: Ledger, artifact_id: str) -> tuple[Artifact, StudyResults]:
    row = ledger.artifact(artifact_id, ArtifactKind.SCORES)
    artifact = Artifact(row.uri, row.artifact_id, row.kind, workspace.cache)
    return artifact, read_record(StudyResults, artifact, RESULTS)
