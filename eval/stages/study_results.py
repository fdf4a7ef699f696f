"""Stage `study_results`: a study and a snapshot of its answers -> results, with the answers they come from."""

from __future__ import annotations

import csv
import io

from pydantic import ValidationError

from eval.records import read_record, write_record
from eval.study.config import ResultsConfig
from eval.study.records import RESULTS, SNAPSHOT, STUDY, TABLE, Snapshot, Study
from eval.study.results import compute, ranks_of
from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic

COLUMNS = ("participant", "task", "prompt", "criterion", "system", "place", "rank")


def run(context: StageContext) -> None:
    config = context.config(ResultsConfig)
    artifact = context.input("study")
    study = read_record(Study, artifact, STUDY)
    data = context.location("answers").read_bytes(f"{config.answers}.json")
    if digest_bytes(data) != config.answers:
        raise DataIntegrityError("the answers are not those of the request", value=digest_bytes(data)[:12])
    snapshot = _read(data)
    if snapshot.study != artifact.id:
        raise DataIntegrityError("the answers are of another study", value=snapshot.study[:12])
    results = compute(study, snapshot, config)
    place = context.output("scores")
    write_record(place / RESULTS, results)
    write_atomic(place / SNAPSHOT, data)
    write_atomic(place / TABLE, table(study, snapshot).encode())
    context.summary(
        "scores",
        {"study": artifact.id, "participants": results.participants, "answers": results.answers,
         "excluded": len(results.excluded)},
    )  # fmt: skip


def _read(data: bytes) -> Snapshot:
    try:
        return Snapshot.model_validate_json(data)
    except ValidationError as error:
        raise DataIntegrityError(f"the answers do not parse: {error.errors()[0]['msg']}") from None


def table(study: Study, snapshot: Snapshot) -> str:
    """CSV of every answer that stands, excluded participants' too: one row a participant, task, criterion and system,
    `rank` being the mid-rank and `place` where the video was shown."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for answer in snapshot.answers:
        for criterion in study.criteria:
            ranks = ranks_of(answer, answer.said[criterion.key])
            prompt = study.prompts[answer.prompt].text
            for place, system in enumerate(answer.shown, 1):
                rank = f"{ranks[system]:g}"
                writer.writerow((answer.participant, answer.task, prompt, criterion.key, system, place, rank))
    return text.getvalue()
