"""Promotions that wait for approvals: asking, deciding, and the move of the channel that the last approval makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import plain_json
from m4v.core.errors import InputError
from pipelines.ledger.chain import PROJECTIONS, record_event, row_digest
from pipelines.ledger.channel_records import ApprovalRow, RequestRow, RequestStatus
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.queries import one_of
from pipelines.ledger.records import ChannelMoved
from pipelines.ledger.registry import current_entry, move, usable
from pipelines.ledger.schema_channels import Approval, PromotionRequest
from pipelines.ledger.types import utc_now


class PromotionOps:
    """The promotion-request verbs of a Ledger."""

    _db: Database

    def request_promotion(
        self,
        channel: str,
        artifact_id: str,
        *,
        expected: str | None,
        approvals_needed: int,
        requested_by: str,
        reason: str,
        facts: Mapping[str, Any] | None = None,
        pipeline_run_id: str | None = None,
    ) -> RequestRow:
        """Record that somebody wants `channel` to name `artifact_id`; a pending request for the same comes back.

        Raises ChannelMoved when the channel names another artifact than `expected` (None: nothing), and what
        `move_channel` raises for an artifact that cannot be used.
        """
        with self._db.write() as session:
            artifact, now = usable(session, artifact_id), current_entry(session, channel)
            if (now.artifact_id if now else None) != expected:
                raise ChannelMoved(
                    f"channel {channel} names another artifact than expected",
                    value=now.artifact_id if now else None,
                    next_step="m4v channels list",
                )
            seq = now.seq if now else 0
            for pending in _pending(session, channel):
                if pending.artifact_id == artifact_id and pending.expected_seq == seq:
                    return _rows(session, [pending])[0]
            row = PromotionRequest(
                request_id=new_id(), channel=channel, artifact_id=artifact_id, kind=artifact.kind, expected_seq=seq,
                approvals_needed=approvals_needed, requested_by=requested_by, reason=reason,
                facts=plain_json(facts or {}), pipeline_run_id=pipeline_run_id, requested_at=utc_now(),
                status=RequestStatus.PENDING, note="", closed_at=None,
            )  # fmt: skip
            return _record(session, row)

    def decide_promotion(
        self, request_id: str, *, actor: str, role: str, approve: bool, comment: str = "", approvals_needed: int = 0
    ) -> RequestRow:
        """Record one person's word; the approval that completes the number moves the channel in the same transaction.

        `approvals_needed`: what the policy demands now, if that is more than when it was asked. A decline closes the
        request, and by who asked cancels it. Raises InputError for a request that is closed, for an approval by who
        asked (or started the run that asks), and for a second word of one person; and what `move_channel` raises.
        """
        with self._db.write() as session:
            row = _open_request(session, request_id)
            own = actor in _rows(session, [row])[0].askers
            if approve and own:
                raise InputError("who asks for a promotion cannot approve it", value=actor, where=row.request_id)
            if session.get(Approval, (row.request_id, actor)) is not None:
                raise InputError("this person has decided already", value=actor, where=row.request_id)
            _record_decision(session, row, actor, role, approve, comment)
            if not approve:
                _close(session, row, RequestStatus.CANCELLED if own else RequestStatus.DECLINED, comment)
            elif len(_approvers(session, row.request_id)) >= max(row.approvals_needed, approvals_needed):
                _promote(session, row)
            return _rows(session, [row])[0]

    def promotion_request(self, id_or_prefix: str) -> RequestRow:
        """One request; raises InputError (with near ids) when it is unknown."""
        with self._db.read() as session:
            row = one_of(session, PromotionRequest.request_id, id_or_prefix, "promotion request")
            return _rows(session, [row])[0]

    def promotion_requests(
        self,
        *,
        channel: str | None = None,
        status: RequestStatus | None = None,
        pipeline_run_id: str | None = None,
        limit: int | None = 50,
    ) -> list[RequestRow]:
        """Requests, newest first."""
        query = select(PromotionRequest).order_by(
            PromotionRequest.requested_at.desc(), PromotionRequest.request_id.desc()
        )
        if channel is not None:
            query = query.where(PromotionRequest.channel == channel)
        if status is not None:
            query = query.where(PromotionRequest.status == status)
        if pipeline_run_id is not None:
            query = query.where(PromotionRequest.pipeline_run_id == pipeline_run_id)
        with self._db.read() as session:
            return _rows(session, session.scalars(query.limit(limit)).all())


def _record(session: Session, row: PromotionRequest) -> RequestRow:
    session.add(row)
    asked = {
        "channel": row.channel, "artifact_id": row.artifact_id, "approvals_needed": row.approvals_needed,
        "by": row.requested_by, "row": row_digest(row, *PROJECTIONS[PromotionRequest]),
    }  # fmt: skip
    record_event(session, "promotion.requested", row.request_id, asked)
    return _rows(session, [row])[0]


def _pending(session: Session, channel: str) -> Sequence[PromotionRequest]:
    query = select(PromotionRequest).where(
        PromotionRequest.channel == channel, PromotionRequest.status == RequestStatus.PENDING
    )
    return session.scalars(query.order_by(PromotionRequest.request_id)).all()


def _open_request(session: Session, request_id: str) -> PromotionRequest:
    row = session.get(PromotionRequest, request_id)
    if row is None:
        raise InputError("ledger has no such promotion request", value=request_id, next_step="m4v channels list")
    if row.status != RequestStatus.PENDING:
        raise InputError(f"promotion request is {row.status} already", value=request_id, next_step="m4v channels list")
    return row


def _record_decision(
    session: Session, request: PromotionRequest, actor: str, role: str, approve: bool, comment: str
) -> None:
    row = Approval(
        request_id=request.request_id,
        actor=actor,
        role=role,
        decision="approve" if approve else "decline",
        comment=comment,
        given_at=utc_now(),
    )
    session.add(row)
    decided = {"actor": actor, "role": role, "decision": row.decision, "row": row_digest(row)}
    record_event(session, "promotion.decided", request.request_id, decided)


def _approvers(session: Session, request_id: str) -> Sequence[str]:
    query = select(Approval.actor).where(Approval.request_id == request_id, Approval.decision == "approve")
    return session.scalars(query.order_by(Approval.given_at)).all()


def _promote(session: Session, request: PromotionRequest) -> None:
    now = current_entry(session, request.channel)
    if (now.seq if now else 0) != request.expected_seq:
        _close(session, request, RequestStatus.VOID, "the channel was moved after this was asked")
        return
    facts = {
        **request.facts,
        "request_id": request.request_id,
        "approved_by": list(_approvers(session, request.request_id)),
    }
    entry = move(
        session, request.channel, request.artifact_id,
        moved_by=request.requested_by, reason=request.reason, facts=facts,
    )  # fmt: skip
    _close(session, request, RequestStatus.PROMOTED, f"entry {entry.seq} of {entry.name}")


def _close(session: Session, request: PromotionRequest, status: RequestStatus, note: str) -> None:
    record_event(session, "promotion.closed", request.request_id, {"status": status, "note": note})
    session.refresh(request)


def _rows(session: Session, rows: Sequence[PromotionRequest]) -> list[RequestRow]:
    session.flush()
    query = select(Approval).where(Approval.request_id.in_({r.request_id for r in rows}))
    approvals: dict[str, list[ApprovalRow]] = {}
    for a in session.scalars(query.order_by(Approval.given_at, Approval.actor)):
        approvals.setdefault(a.request_id, []).append(
            ApprovalRow(**{f: getattr(a, f) for f in ApprovalRow.__dataclass_fields__})
        )
    names = [f for f in RequestRow.__dataclass_fields__ if f not in ("approvals", "kind", "status")]
    return [
        RequestRow(
            **{f: getattr(r, f) for f in names},
            kind=ArtifactKind(r.kind),
            status=RequestStatus(r.status),
            approvals=tuple(approvals.get(r.request_id, ())),
        )
        for r in rows
    ]
