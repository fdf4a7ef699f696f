"""Prefect's flow runs against the pipeline runs that they were. Imports Prefect; so only whoever has a server does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType

from m4v.core.errors import InfrastructureError, InputError
from pipelines.ledger import Ledger, PipelineRunRow, Status
from pipelines.ledger.process import is_alive
from pipelines.reconcile.findings import Finding, FindingKind

GRACE_S = 120.0
BY = "m4v reconcile"
_MANY = 100  # flow runs of one question
# What a flow run says when it tells the truth; for a run that ended without a word Prefect may know why.
_TRUE: dict[Status, tuple[StateType, ...]] = {
    Status.SUCCEEDED: (StateType.COMPLETED,),
    Status.FAILED: (StateType.FAILED,),
    Status.REFUSED: (StateType.FAILED,),
    Status.DRAINED: (StateType.CANCELLED,),
    Status.LOST: (StateType.CRASHED, StateType.FAILED, StateType.CANCELLED),
}
_TO_COME = (StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED)  # perhaps a retry of what has ended


def reconcile_flow_runs(ledger: Ledger, *, apply: bool, days: float, grace_s: float = GRACE_S) -> list[Finding]:
    """Tell flow runs of the last `days` on the server in PREFECT_API_URL what the ledger knows of them.

    A run that is at work is put back to Running when Prefect took it for ended, and drained when it was cancelled
    there. One that ended gets the ledger's verdict, unless Prefect has it already. `grace_s`: how long both may take
    to say the same by themselves. Raises
    InfrastructureError when no server answers.
    """
    runs = {each.flow_run_id: each.pipeline_run_id for each in ledger.flow_runs(days)}  # the last run of each
    found = []
    try:
        with get_client(sync_client=True) as client:
            if (silent := client.api_healthcheck()) is not None:
                raise silent
            for flow_run in _read(client, list(runs)):
                row = ledger.pipeline_run(runs[str(flow_run.id)])
                finding = _Comparison(ledger, client, flow_run, row, apply).finding(timedelta(seconds=grace_s))
                if finding is not None:
                    found.append(finding)
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        raise InfrastructureError(
            f"the Prefect server does not answer: {error or type(error).__name__}", where="PREFECT_API_URL",
            next_step="start it, or unset the variable: the rest is reconciled without it",
        ) from None  # fmt: skip
    return found


def _read(client: SyncPrefectClient, identities: Sequence[str]) -> list[FlowRun]:
    """Those of the flow runs that this server has."""
    found: list[FlowRun] = []
    for place in range(0, len(identities), _MANY):
        wanted = FlowRunFilterId(any_=[UUID(each) for each in identities[place : place + _MANY]])
        found += client.read_flow_runs(flow_run_filter=FlowRunFilter(id=wanted), limit=_MANY)
    return found


class _Comparison:
    """One flow run with the pipeline run that it was."""

    def __init__(
        self, ledger: Ledger, client: SyncPrefectClient, flow_run: FlowRun, row: PipelineRunRow, apply: bool
    ) -> None:
        self._ledger, self._client, self._flow_run, self._row, self._apply = ledger, client, flow_run, row, apply

    def finding(self, grace: timedelta) -> Finding | None:
        state = self._flow_run.state
        if state is None or state.type in _TO_COME:
            return None
        now = datetime.now(UTC)
        if self._row.status is Status.RUNNING:
            return self._of_running(state) if now - state.timestamp >= grace else None
        ended = self._row.finished_at
        if ended is None or now - ended < grace or state.type in _TRUE[self._row.status]:
            return None
        if not state.is_final() and state.timestamp > ended:
            return None  # Prefect tries it again, and the ledger has not heard of that yet
        return self._told(state, _TRUE[self._row.status][0], f"run {self._row.pipeline_run_id} {self._row.status}")

    def _of_running(self, state: State[object]) -> Finding | None:
        cancelled = state.type in (StateType.CANCELLING, StateType.CANCELLED)
        if not cancelled and not state.is_final():
            return None
        if not self._at_work():
            return self._found(state, "no sign of life, but its process cannot be seen from here", "", False)
        if not cancelled:
            return self._told(state, StateType.RUNNING, f"run {self._row.pipeline_run_id} is at work")
        if self._apply and not self._drain():
            return None
        return self._found(state, "it is at work", "drained", self._apply)

    def _at_work(self) -> bool:
        """Whether its process is alive here, or a stage of it holds a claim, which needs somebody who renews it."""
        if is_alive(self._ledger.runner_of(self._row.pipeline_run_id)):
            return True
        attempts = self._ledger.attempts(pipeline_run_id=self._row.pipeline_run_id, status=Status.RUNNING, limit=None)
        return any(self._ledger.holder(attempt.stage_key) is not None for attempt in attempts)

    def _drain(self) -> bool:
        try:
            self._ledger.request_drain(
                pipeline_run_id=self._row.pipeline_run_id, reason="cancelled in Prefect", requested_by=BY
            )
        except InputError:
            return False  # it has ended meanwhile
        return True

    def _told(self, state: State[object], wanted: StateType, why: str) -> Finding:
        if self._apply:
            self._client.set_flow_run_state(
                self._flow_run.id, State(type=wanted, message=f"{why}, as the ledger has it ({BY})"), force=True
            )
        return self._found(state, why, f"set to {wanted.value.lower()}", self._apply)

    def _found(self, state: State[object], why: str, repair: str, repaired: bool) -> Finding:
        return Finding(
            kind=FindingKind.FLOW_RUN, subject=str(self._flow_run.id), repair=repair, repaired=repaired,
            says=f"{self._flow_run.name} is {state.type.value.lower()} in Prefect; in the ledger {why}",
        )  # fmt: skip
