"""For machines: is the server well, and its figures."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from m4v.core.errors import M4VError
from pipelines.ledger.counts import LedgerCounts
from pipelines.web.app.site import LedgerDep

router = APIRouter()


@router.get("/healthz")
def healthz(ledger: LedgerDep) -> PlainTextResponse:
    """200 when the ledger answers, else 503."""
    try:
        ledger.pipeline_runs(limit=1)
    except M4VError as error:
        return PlainTextResponse(f"{error.what}\n", 503)
    return PlainTextResponse("ok\n")


@router.get("/favicon.ico")
def icon() -> Response:
    """Pages name an empty icon; browsers ask for one beside plain files."""
    return Response(status_code=204)


@router.get("/metrics")
def metrics(ledger: LedgerDep) -> PlainTextResponse:
    """Counts of the ledger in the text format that Prometheus scrapes."""
    return PlainTextResponse(exposition(ledger.counts()), media_type="text/plain; version=0.0.4; charset=utf-8")


def exposition(counts: LedgerCounts) -> str:
    """The counts as lines of `name{label="value"} number`."""
    waiting = {sink: counts.events - seq for sink, seq in counts.delivered.items()}
    blocks = (
        ("m4v_pipeline_runs", "Pipeline runs by state.", "state", counts.runs),
        ("m4v_running_attempts", "Attempts that are running.", "", {"": counts.running_attempts}),
        ("m4v_artifacts", "Artifacts by kind whose bytes were not deleted.", "kind", counts.artifacts),
        ("m4v_artifact_bytes", "Their bytes, counted once an artifact.", "kind", counts.artifact_bytes),
        ("m4v_ledger_events", "Events in the hash chain.", "", {"": counts.events}),
        ("m4v_outbox_waiting", "Events that a sink has not confirmed.", "sink", waiting),
    )
    lines: list[str] = []
    for name, about, label, values in blocks:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
        lines += [f"{name}{_labels(label, key)} {value}" for key, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def _labels(label: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{label}="{escaped}"}}' if label else ""
