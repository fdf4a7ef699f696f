"""The page of a takedown's impact, which is also its dry run, with the form that applies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi import Request
from fastapi.responses import HTMLResponse

from m4v.core.errors import M4VError
from pipelines.access import Role
from pipelines.impact import AffectedCheckpoint, Impact, Verdict
from pipelines.web.app.actions import Stale, may
from pipelines.web.app.failures import status_of
from pipelines.web.app.site import site_of
from pipelines.web.app.takedown_form import shown_digest
from pipelines.web.app.views import page

_CONFLICT = 409


def impact_view(
    request: Request,
    terms: Sequence[str],
    reach: Impact | None,
    *,
    problem: M4VError | None = None,
    form: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """`problem` says why the form that was sent did not apply the takedown, `form` is what it said."""
    status = 200 if problem is None else _CONFLICT if isinstance(problem, Stale) else status_of(problem)
    again = in_order([c for c in reach.checkpoints if c.verdict is not Verdict.CONTAINS]) if reach else []
    withdrawn = {w.artifact_id: w.takedown_id for w in site_of(request).reading.withdrawals()} if reach else {}
    cases = sorted({withdrawn[i] for i in reach.artifact_ids if i in withdrawn}) if reach else []
    return page(
        request, "impact", here="clips", status=status, terms=terms, reach=reach, again=again, problem=problem,
        form=form or {}, expect=shown_digest(reach) if reach else "", cases=cases,
        can_take_down=may(request, Role.APPROVER), can_delete=may(request, Role.ADMIN),
    )  # fmt: skip


def in_order(checkpoints: Sequence[AffectedCheckpoint]) -> list[AffectedCheckpoint]:
    """As they are trained: each behind the one that it starts from."""
    by_id = {c.artifact_id: c for c in checkpoints}
    ordered: dict[str, AffectedCheckpoint] = {}
    for checkpoint in checkpoints:
        line: list[AffectedCheckpoint] = []
        step: AffectedCheckpoint | None = checkpoint
        while step is not None and step.artifact_id not in ordered and step not in line:
            line.append(step)
            step = by_id.get(step.init_from or "")
        ordered |= {c.artifact_id: c for c in reversed(line)}
    return list(ordered.values())
