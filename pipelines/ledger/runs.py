"""Stage runs: committing one in a single transaction, and finding them again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json, plain_json
from m4v.core.errors import ExitClass, InputError
from m4v.core.stage import InputRef
from pipelines.ledger import schema
from pipelines.ledger.attempts import attempt_of, finish
from pipelines.ledger.chain import PROJECTIONS, record_event, row_digest
from pipelines.ledger.claims import checked
from pipelines.ledger.courses import record_courses
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.records import ArtifactRow, Claim, Exactness, NewRun, PortRow, RunRow, Status
from pipelines.ledger.stems import record_stems
from pipelines.ledger.types import utc_now
from pipelines.ledger.withdrawn import refuse_withdrawn
from pipelines.store import ArtifactRecord

Ports = dict[str, tuple[str, str]]  # name -> (artifact id, kind)


class RunOps:
    """The stage-run verbs of a Ledger."""

    _db: Database

    def commit_run(
        self,
        claim: Claim,
        attempt_id: str,
        run: NewRun,
        inputs: Iterable[InputRef],
        outputs: Mapping[str, ArtifactRecord],
        metrics: Mapping[str, Any] | None = None,
        admits: Collection[str] = (),
    ) -> str:
        """Record a successful execution and its published outputs in one transaction; returns the run id.

        Raises ClaimLost when the fence is no longer the live one, InputError for an input artifact that
        the ledger does not know, Withdrawn for an input (but those in `admits`) or output that a takedown took out
        of use. A run of the same key with the same outputs is adopted (its id comes
        back); with other outputs a new generation of the key is recorded.
        """
        if run.stage_key != claim.stage_key:
            raise InputError("claim is for another stage key", value=claim.stage_key[:16], where=run.stage)
        ins: Ports = {i.name: (i.artifact_id, i.kind) for i in inputs}
        outs: Ports = {name: (a.artifact_id, a.kind) for name, a in outputs.items()}
        measured = {k: plain_json(v) for k, v in (metrics or {}).items()}
        with self._db.write() as session:
            checked(session, claim, lock=True)
            attempt = attempt_of(session, attempt_id)
            if attempt.status == Status.SUCCEEDED and attempt.run_id is not None:
                return attempt.run_id  # this very commit was made before, only its answer got lost
            refuse_withdrawn(session, [(i, k) for i, k in ins.values() if i not in admits], run.stage)
            refuse_withdrawn(session, outs.values(), run.stage)
            for artifact in outputs.values():
                record_artifact(session, artifact)
            run_id = _adopt(session, run.stage_key, outs) or _insert_run(session, run, attempt_id, ins, outs, measured)
            finish(session, attempt_id, Status.SUCCEEDED, ExitClass.OK, "", measured, run_id)
            return run_id

    def find_run(self, stage_key: str) -> RunRow | None:
        """The newest run of a key: what a cache hit would use, once its outputs verify."""
        with self._db.read() as session:
            row = _newest(session, stage_key)
            return load_runs(session, [row])[0] if row is not None else None

    def import_artifact(self, artifact: ArtifactRecord) -> None:
        """Record an artifact that no run made (imported weights); known ones are left as they are."""
        with self._db.write() as session:
            record_artifact(session, artifact)


def record_artifact(session: Session, artifact: ArtifactRecord) -> None:
    """Add an artifact's row, or note its new place."""
    row = session.get(schema.Artifact, (artifact.artifact_id, str(artifact.kind)))
    if row is not None:
        if row.deletion is not None:  # its bytes were published again
            record_event(session, "artifact.restored", artifact.artifact_id, {"kind": artifact.kind})
        if row.uri != artifact.uri:
            moved = {"kind": artifact.kind, "uri": artifact.uri}
            record_event(session, "artifact.located", artifact.artifact_id, moved)
        return
    row = schema.Artifact(
        artifact_id=artifact.artifact_id,
        kind=str(artifact.kind),
        size_bytes=artifact.size_bytes,
        files=artifact.files,
        summary=plain_json(artifact.summary),
        recorded_at=utc_now(),
        uri=artifact.uri,
    )
    session.add(row)
    recorded = {"kind": artifact.kind, "uri": artifact.uri, "row": row_digest(row, *PROJECTIONS[schema.Artifact])}
    record_event(session, "artifact.recorded", artifact.artifact_id, recorded)
    if artifact.kind is ArtifactKind.CHECKPOINT:
        record_courses(session, [artifact.artifact_id])


def _newest(session: Session, stage_key: str) -> schema.StageRun | None:
    newest = select(schema.StageRun).where(schema.StageRun.stage_key == stage_key)
    return session.scalars(newest.order_by(schema.StageRun.generation.desc()).limit(1)).one_or_none()


def _adopt(session: Session, stage_key: str, outputs: Ports) -> str | None:
    """The newest run of the key if it has the same outputs."""
    row = _newest(session, stage_key)
    if row is None or _ports(session, schema.RunOutput, row.run_id) != outputs:
        return None
    record_event(session, "run.adopted", row.run_id, {"stage_key": stage_key})
    return row.run_id


def _ports(session: Session, table: type[schema.RunInput] | type[schema.RunOutput], run_id: str) -> Ports:
    rows = session.execute(select(table.name, table.artifact_id, table.kind).where(table.run_id == run_id))
    return {r.name: (r.artifact_id, r.kind) for r in rows}


def _insert_run(
    session: Session, run: NewRun, attempt_id: str, inputs: Ports, outputs: Ports, metrics: dict[str, Any]
) -> str:
    for name, (artifact_id, kind) in inputs.items():
        if session.get(schema.Artifact, (artifact_id, str(kind))) is None:
            raise InputError(
                f"ledger does not know input {name}", value=artifact_id, where=run.stage, next_step="m4v artifacts list"
            )
    before = _newest(session, run.stage_key)
    row = schema.StageRun(
        run_id=new_id(),
        stage_key=run.stage_key,
        generation=before.generation + 1 if before else 1,
        stage=run.stage,
        stage_version=run.stage_version,
        key_record=dict(run.key_record),
        config=dict(run.config),
        config_digest=digest_json(dict(run.config)),
        code_digest=run.code_digest,
        environment=plain_json(run.environment),
        seed=str(run.seed),
        exactness=str(run.exactness),
        metrics=metrics,
        attempt_id=attempt_id,
        committed_at=utc_now(),
    )
    session.add(row)
    session.flush()
    session.add_all(
        schema.RunInput(run_id=row.run_id, name=n, artifact_id=a, kind=str(k)) for n, (a, k) in inputs.items()
    )
    session.add_all(
        schema.RunOutput(run_id=row.run_id, name=n, artifact_id=a, kind=str(k)) for n, (a, k) in outputs.items()
    )
    committed = {"row": row_digest(row), "stage_key": run.stage_key, "inputs": inputs, "outputs": outputs}
    record_event(session, "run.committed", row.run_id, committed)
    record_stems(session, row.run_id)
    if before is not None:
        record_event(session, "run.diverged", row.run_id, {"stage_key": run.stage_key, "from": before.run_id})
    return row.run_id


def load_runs(session: Session, rows: Iterable[schema.StageRun]) -> list[RunRow]:
    """Rows with their inputs and outputs, in the order given."""
    rows = list(rows)
    ids = [r.run_id for r in rows]
    inputs, outputs = _ports_of(session, schema.RunInput, ids), _ports_of(session, schema.RunOutput, ids)
    return [
        RunRow(
            run_id=r.run_id, stage_key=r.stage_key, generation=r.generation, stage=r.stage,
            stage_version=r.stage_version, key_record=r.key_record, config=r.config, config_digest=r.config_digest,
            code_digest=r.code_digest, environment=r.environment, seed=int(r.seed), exactness=Exactness(r.exactness),
            metrics=r.metrics, attempt_id=r.attempt_id, committed_at=r.committed_at,
            inputs=tuple(inputs.get(r.run_id, ())), outputs=tuple(outputs.get(r.run_id, ())),
        )
        for r in rows
    ]  # fmt: skip


def _ports_of(
    session: Session, table: type[schema.RunInput] | type[schema.RunOutput], run_ids: list[str]
) -> dict[str, list[PortRow]]:
    found: dict[str, list[PortRow]] = {}
    query = select(table.run_id, table.name, table.artifact_id, table.kind).where(table.run_id.in_(run_ids))
    for r in session.execute(query.order_by(table.run_id, table.name)):
        found.setdefault(r.run_id, []).append(
            PortRow(name=r.name, artifact_id=r.artifact_id, kind=ArtifactKind(r.kind))
        )
    return found


def artifact_row(row: schema.Artifact) -> ArtifactRow:
    return ArtifactRow(
        artifact_id=row.artifact_id,
        kind=ArtifactKind(row.kind),
        uri=row.uri,
        size_bytes=row.size_bytes,
        files=row.files,
        summary=row.summary,
        recorded_at=row.recorded_at,
        deletion=row.deletion,
        deleted_at=row.deleted_at,
    )
