"""Tables of the ledger (DESIGN section 3). Migrations build them; a test holds the two equal.

Rows are immutable, by triggers as well, except *projections* (marked below), which `rebuild` makes again
from the hash-chained `event` table.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipelines.ledger.types import CanonicalJson, UtcDateTime

HEAD_REVISION = "0005"
GENESIS = "0" * 64


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: CanonicalJson, datetime: UtcDateTime, int: BigInteger}


class Artifact(Base):
    """An artifact somebody recorded. Projections: `uri` says where it lies now, `deletion` what became of its bytes
    (`marked`: they are going, `done`: they are gone, None: they lie there)."""

    __tablename__ = "artifact"
    artifact_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int]
    files: Mapped[int]
    summary: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]
    uri: Mapped[str]
    deletion: Mapped[str | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_artifact_deletion", "deletion"),
        Index("ix_artifact_list", "recorded_at", "artifact_id", "kind"),
        Index("ix_artifact_kind_list", "kind", "recorded_at", "artifact_id"),
    )


class PipelineRun(Base):
    """One `m4v run` of a recipe. Projections: status, exit_class, message, finished_at."""

    __tablename__ = "pipeline_run"
    pipeline_run_id: Mapped[str] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(index=True)
    recipe_digest: Mapped[str]
    resolved: Mapped[dict[str, Any]]
    trigger: Mapped[str]
    host: Mapped[str]
    process: Mapped[str]
    started_at: Mapped[datetime]
    status: Mapped[str]
    exit_class: Mapped[int | None]
    message: Mapped[str]
    finished_at: Mapped[datetime | None]
    # In the order of lists and with all they filter by: rows are wide, and most are never looked at.
    __table_args__ = (
        Index("ix_pipeline_run_list", "started_at", "pipeline_run_id", "status", "recipe", "trigger", "host"),
    )


class Attempt(Base):
    """One launch of a stage, recorded before it starts.

    Projections: everything from `pid` on. `run_id` is the run it committed or adopted.
    """

    __tablename__ = "attempt"
    attempt_id: Mapped[str] = mapped_column(primary_key=True)
    stage_key: Mapped[str]
    stage: Mapped[str]
    number: Mapped[int]
    fence: Mapped[int]
    launcher: Mapped[str]
    host: Mapped[str]
    work_dir: Mapped[str]
    log_path: Mapped[str]
    pipeline_run_id: Mapped[str | None] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"))
    node_id: Mapped[str | None]
    started_at: Mapped[datetime]
    pid: Mapped[int | None]
    job: Mapped[str | None]
    status: Mapped[str]
    exit_class: Mapped[int | None]
    message: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    finished_at: Mapped[datetime | None]
    run_id: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(CanonicalJson)
    heartbeat_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("stage_key", "number"),
        Index("ix_attempt_stage", "stage", "started_at"),
        Index("ix_attempt_pipeline_run", "pipeline_run_id"),
        Index("ix_attempt_status", "status"),
    )


class StageRun(Base):
    """A successful execution of a stage. `generation` counts runs of one key whose outputs differed."""

    __tablename__ = "stage_run"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    stage_key: Mapped[str]
    generation: Mapped[int]
    stage: Mapped[str]
    stage_version: Mapped[int]
    key_record: Mapped[dict[str, Any]]
    config: Mapped[dict[str, Any]]
    config_digest: Mapped[str]
    code_digest: Mapped[str]
    environment: Mapped[dict[str, Any]]
    seed: Mapped[str]  # decimal: canonical JSON and BIGINT end before a 64-bit seed does
    exactness: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempt.attempt_id"))
    committed_at: Mapped[datetime]
    __table_args__ = (UniqueConstraint("stage_key", "generation"), Index("ix_stage_run_stage", "stage", "committed_at"))


class RunInput(Base):
    __tablename__ = "run_input"
    run_id: Mapped[str] = mapped_column(ForeignKey("stage_run.run_id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    __table_args__ = (
        ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),
        Index("ix_run_input_artifact", "artifact_id", "run_id", "name"),
        {"sqlite_with_rowid": False},  # rows lie in the order that lineage walks them
    )


class RunOutput(Base):
    __tablename__ = "run_output"
    run_id: Mapped[str] = mapped_column(ForeignKey("stage_run.run_id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    __table_args__ = (
        ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),
        Index("ix_run_output_artifact", "artifact_id", "run_id", "name"),
        {"sqlite_with_rowid": False},  # rows lie in the order that lineage walks them
    )


class PipelineRunNode(Base):
    """What became of a node of a pipeline run (projection of `pipeline.node` events)."""

    __tablename__ = "pipeline_run_node"
    pipeline_run_id: Mapped[str] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"), primary_key=True)
    node_id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    stage_key: Mapped[str | None]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("stage_run.run_id"))
    attempt_id: Mapped[str | None]
    how: Mapped[str]
    reason: Mapped[str]
    recorded_at: Mapped[datetime]
    __table_args__ = (Index("ix_pipeline_run_node_run", "run_id"), Index("ix_pipeline_run_node_node", "node_id"))


class Reuse(Base):
    """A cache hit: a pipeline run used a run that had been made before, and why that was right."""

    __tablename__ = "reuse"
    reuse_id: Mapped[str] = mapped_column(primary_key=True)
    pipeline_run_id: Mapped[str] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"), index=True)
    node_id: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("stage_run.run_id"), index=True)
    reason: Mapped[str]
    recorded_at: Mapped[datetime]


class Claim(Base):
    """The live lease on a stage key. The row stays after release, so the fence only grows."""

    __tablename__ = "claim"
    stage_key: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int]
    owner: Mapped[str]
    host: Mapped[str]
    process: Mapped[str]
    lease_until: Mapped[datetime]
    released: Mapped[bool]


class Event(Base):
    """The append-only history. `hash` covers the whole row and the hash before it."""

    __tablename__ = "event"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    payload: Mapped[dict[str, Any]]
    prev_hash: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]


class ChainHead(Base):
    """One row: the last event. Writers lock it, so the chain cannot fork; a cut-off tail shows."""

    __tablename__ = "chain_head"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    hash: Mapped[str]


class Channel(Base):
    """Promotion history: row `seq` of a channel says which artifact it names from then on."""

    __tablename__ = "channel"
    name: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    moved_by: Mapped[str]
    reason: Mapped[str]
    moved_at: Mapped[datetime]
    __table_args__ = (ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),)


class Takedown(Base):
    """A request to withdraw clips: `selector` says which (clip ids, or spans of a source)."""

    __tablename__ = "takedown"
    takedown_id: Mapped[str] = mapped_column(primary_key=True)
    selector: Mapped[dict[str, Any]]
    reason: Mapped[str]
    requested_by: Mapped[str]
    requested_at: Mapped[datetime]


class Outbox(Base):
    """How far each sink has been fed: events have no gaps, so one number a sink is a whole outbox."""

    __tablename__ = "outbox"
    sink: Mapped[str] = mapped_column(primary_key=True)
    delivered_seq: Mapped[int]
    delivered_at: Mapped[datetime]
