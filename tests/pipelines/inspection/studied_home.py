"""A home whose ledger has one study of five systems, one of them another's, counted twice by the real statistics."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))

from evaluated_home import EvaluatedHome
from study_house import SYSTEMS, answer_of, study_of, truthful

from eval.records import SYSTEM, write_record
from eval.stages.study_results import table
from eval.study.config import ResultsConfig
from eval.study.design import participant_id, tasks_of
from eval.study.records import RESULTS, STUDY, TABLE, Snapshot, Study
from eval.study.results import compute
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.config import FrozenModel
from pipelines.ledger import Ledger
from pipelines.store import ArtifactRecord
from pipelines.workspace import Workspace

HOSTILE = "<script>alert('x')</script>"
# By criterion what the participants hold to be true, best first; the last of them sees motion the other way round.
ORDERS = {"aesthetic": SYSTEMS, "motion": SYSTEMS, "semantic": (*SYSTEMS[2:], *SYSTEMS[:2])}
CONTRARY = {**ORDERS, "motion": tuple(reversed(SYSTEMS))}


@dataclass(frozen=True)
class StudiedHome:
    """`early`: results of two participants; `results`: of all; `other`: scores that are of no study."""

    place: Path
    study: str
    early: str
    results: str
    other: str


def studied_home(root: Path, people: int = 8) -> StudiedHome:
    place = root / "home"
    study = study_of(prompts=4, title=f"Which is better? {HOSTILE}")
    systems = (
        study.systems[0],
        study.systems[1].model_copy(update={"checkpoint": f"{SYSTEM}alpha"}),
        *study.systems[2:],
    )
    study = study.model_copy(update={"systems": systems})
    with Ledger.open(Workspace.open(place).ledger_url) as ledger:
        made = EvaluatedHome(place, ledger)
        facts: dict[str, object] = {"study": study.title, "mode": "rank", "systems": list(SYSTEMS), "prompts": 4}
        of_study = _published(place / "study", ArtifactKind.REPORT, facts, {STUDY: study})
        made.run("study", "study", of_study, {})
        ids = [_counted(made, place / f"{n}", study, of_study, n) for n in (2, people)]
        other = made.evaluated([0.5] * 6)[1]
    return StudiedHome(place, of_study.artifact_id, ids[0], ids[1], other)


def _counted(made: EvaluatedHome, folder: Path, study: Study, of_study: ArtifactRecord, people: int) -> str:
    answers = [
        answer_of(participant_id(n), task, truthful(study, task, CONTRARY if n == people else ORDERS))
        for n in range(1, people + 1)
        for task in tasks_of(study, participant_id(n))
    ]
    snapshot = Snapshot(
        study=of_study.artifact_id, invited=people + 2, revoked=("p001",), answers=tuple(answers)
    )  # fmt: skip
    results = compute(study, snapshot, ResultsConfig(answers="0" * 64, resamples=100))
    folder.mkdir()
    (folder / TABLE).write_text(table(study, snapshot))
    facts: dict[str, object] = {"study": of_study.artifact_id, "participants": results.participants,
                                "answers": results.answers, "excluded": len(results.excluded)}  # fmt: skip
    record = _published(folder, ArtifactKind.SCORES, facts, {RESULTS: results})
    made.run("study_results", "scores", record, {"study": of_study})
    return record.artifact_id


def _published(
    folder: Path, kind: ArtifactKind, facts: dict[str, object], records: dict[str, FrozenModel]
) -> ArtifactRecord:
    folder.mkdir(exist_ok=True)
    for name, record in records.items():
        write_record(folder / name, record)
    manifest = build_manifest(folder, kind, facts)
    write_manifest(folder, manifest)
    return ArtifactRecord(
        artifact_id=manifest.artifact_id, kind=kind, uri=str(folder), size_bytes=manifest.size_bytes,
        files=len(manifest.files), summary=manifest.summary,
    )  # fmt: skip
