"""Takedown cases: their clips, withdrawn artifacts and finished steps, each row tied to the event chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json, plain_json
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event, row_digest
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.queries import one_of
from pipelines.ledger.schema_takedown import TakedownClips, TakedownStep, Withdrawal
from pipelines.ledger.takedown_records import StepRow, TakedownRow, WithdrawalRow
from pipelines.ledger.types import utc_now
from pipelines.ledger.withdrawn import refuse_withdrawn

PART_CLIPS = 1000
Held = tuple[str, str, str]  # artifact id, kind, why it is withdrawn


class TakedownOps:
    """The verbs of takedown cases."""

    _db: Database

    def open_takedown(
        self,
        selector: Mapping[str, Any],
        *,
        reason: str,
        requested_by: str,
        policy: Mapping[str, Any],
        blocks: Mapping[str, Any],
        clips: Sequence[Mapping[str, Any]],
        artifacts: Iterable[Held],
    ) -> TakedownRow:
        """Record a case with the clips it blocks and the artifacts it withdraws, in one transaction: from then on
        nothing starts on them. The same selector again gives the case that is there.

        `blocks`: collections, files and hashes that are blocked whatever clips are cut from them.
        """
        with self._db.write() as session:
            row = _case_of(session, selector)
            if row is None:
                row = schema.Takedown(
                    takedown_id=new_id(), selector=plain_json(selector), reason=reason, requested_by=requested_by,
                    requested_at=utc_now(),
                )  # fmt: skip
                session.add(row)
                record_event(session, "takedown.requested", row.takedown_id, {"row": row_digest(row)})
                _add_step(
                    session, row.takedown_id, "opened", "", {"policy": plain_json(policy), "blocks": plain_json(blocks)}
                )
                _add_clips(session, row.takedown_id, clips)
                _withdraw(session, row.takedown_id, artifacts)
            return takedown_row(row)

    def extend_takedown(
        self, takedown_id: str, clips: Sequence[Mapping[str, Any]], artifacts: Iterable[Held]
    ) -> tuple[int, list[str]]:
        """Block more clips and withdraw more artifacts under a case; returns how many clips and which artifacts
        were new to it."""
        with self._db.write() as session:
            known = {c["clip_id"] for part in _parts(session, takedown_id) for c in part["clips"]}
            more = [clip for clip in clips if clip["clip_id"] not in known]
            _add_clips(session, takedown_id, more)
            return len(more), _withdraw(session, takedown_id, artifacts)

    def record_step(self, takedown_id: str, step: str, item: str = "", facts: Mapping[str, Any] | None = None) -> None:
        """Say that a step is done for an item; said again, the first word stands."""
        with self._db.write() as session:
            if session.get(TakedownStep, (takedown_id, step, item)) is None:
                _add_step(session, takedown_id, step, item, facts or {})

    def takedown_steps(self, takedown_id: str, step: str | None = None) -> list[StepRow]:
        """Steps done, in the order in which they were."""
        query = select(TakedownStep).where(TakedownStep.takedown_id == takedown_id)
        if step is not None:
            query = query.where(TakedownStep.step == step)
        with self._db.read() as session:
            rows = session.scalars(query.order_by(TakedownStep.recorded_at, TakedownStep.step, TakedownStep.item))
            return [StepRow(**{f: getattr(r, f) for f in StepRow.__dataclass_fields__}) for r in rows]

    def takedown(self, id_or_prefix: str) -> TakedownRow:
        """A case; raises InputError (with near ids) for a prefix that is unknown or not unique."""
        with self._db.read() as session:
            return takedown_row(one_of(session, schema.Takedown.takedown_id, id_or_prefix, "takedown"))

    def find_takedown(self, selector: Mapping[str, Any]) -> TakedownRow | None:
        """The case of exactly this selector."""
        with self._db.read() as session:
            row = _case_of(session, selector)
            return takedown_row(row) if row is not None else None

    def takedown_clips(self, takedown_id: str, parts: int | None = None) -> list[dict[str, Any]]:
        """Clips that a case blocks (those of its first `parts`), in the order in which they were recorded."""
        with self._db.read() as session:
            return [clip for part in _parts(session, takedown_id)[:parts] for clip in part["clips"]]

    def blocked_parts(self) -> list[tuple[str, int]]:
        """(case, parts of its clips) of every case that blocks something, oldest first: what a block list is made of.
        Rows never change, so equal answers mean equal lists."""
        count = select(TakedownClips.takedown_id, func.count()).group_by(TakedownClips.takedown_id)
        with self._db.read() as session:
            return sorted((case, int(parts)) for case, parts in session.execute(count))

    def blocked_at(self) -> datetime | None:
        """When the block list grew last; None while nothing is blocked."""
        with self._db.read() as session:
            return session.scalar(select(func.max(TakedownClips.recorded_at)))

    def withdrawal(self, artifact_id: str, kind: str) -> WithdrawalRow | None:
        """Who withdrew an artifact; None for one that may be used."""
        with self._db.read() as session:
            row = session.get(Withdrawal, (artifact_id, str(kind)))
            return _withdrawal_row(row) if row is not None else None

    def withdrawals(self, takedown_id: str | None = None) -> list[WithdrawalRow]:
        """Withdrawn artifacts (of one case), in the order in which they were."""
        query = select(Withdrawal).order_by(Withdrawal.recorded_at, Withdrawal.artifact_id, Withdrawal.kind)
        if takedown_id is not None:
            query = query.where(Withdrawal.takedown_id == takedown_id)
        with self._db.read() as session:
            return [_withdrawal_row(row) for row in session.scalars(query)]

    def refuse_withdrawn(self, artifacts: Iterable[tuple[str, str]], where: str | None = None) -> None:
        """Raise Withdrawn for the first of these (artifact id, kind) that may not be used."""
        with self._db.read() as session:
            refuse_withdrawn(session, artifacts, where)


def takedown_row(row: schema.Takedown) -> TakedownRow:
    return TakedownRow(**{f: getattr(row, f) for f in TakedownRow.__dataclass_fields__})


def _withdrawal_row(row: Withdrawal) -> WithdrawalRow:
    values = {f: getattr(row, f) for f in WithdrawalRow.__dataclass_fields__}
    return WithdrawalRow(**{**values, "kind": ArtifactKind(row.kind)})


def _case_of(session: Session, selector: Mapping[str, Any]) -> schema.Takedown | None:
    wanted = digest_json(plain_json(selector))
    cases = session.scalars(select(schema.Takedown).order_by(schema.Takedown.takedown_id))
    steps = TakedownStep
    for row in cases:
        opened = session.get(steps, (row.takedown_id, "opened", ""))
        if opened is not None and digest_json(row.selector) == wanted:
            return row
    return None


def _parts(session: Session, takedown_id: str) -> list[dict[str, Any]]:
    query = select(TakedownClips.clips).where(TakedownClips.takedown_id == takedown_id)
    return list(session.scalars(query.order_by(TakedownClips.number)))


def _add_clips(session: Session, takedown_id: str, clips: Sequence[Mapping[str, Any]]) -> None:
    parts = [plain_json(list(clips[i : i + PART_CLIPS])) for i in range(0, len(clips), PART_CLIPS)]
    before = len(_parts(session, takedown_id))
    if not before and not parts:
        parts = [[]]  # a case without a clip still blocks what its selector names
    for number, part in enumerate(parts, before):
        row = TakedownClips(takedown_id=takedown_id, number=number, clips={"clips": part}, recorded_at=utc_now())
        session.add(row)
        record_event(session, "takedown.clips", takedown_id, {"number": number, "row": row_digest(row)})


def _withdraw(session: Session, takedown_id: str, artifacts: Iterable[Held]) -> list[str]:
    new = []
    for artifact_id, kind, reason in artifacts:
        if session.get(Withdrawal, (artifact_id, str(kind))) is not None:
            continue
        row = Withdrawal(
            artifact_id=artifact_id, kind=str(kind), takedown_id=takedown_id, reason=reason, recorded_at=utc_now()
        )
        session.add(row)
        told = {"kind": str(kind), "takedown_id": takedown_id, "row": row_digest(row)}
        record_event(session, "artifact.withdrawn", artifact_id, told)
        new.append(artifact_id)
    return new


def _add_step(session: Session, takedown_id: str, step: str, item: str, facts: Mapping[str, Any]) -> None:
    row = TakedownStep(
        takedown_id=takedown_id, step=step, item=item, facts=plain_json(facts), recorded_at=utc_now()
    )  # fmt: skip
    session.add(row)
    record_event(session, "takedown.step", takedown_id, {"step": step, "item": item, "row": row_digest(row)})
