"""A pipeline run as a Prefect flow from this process: on the server in PREFECT_API_URL, else on a temporary
one that lives as long as the run. Imports Prefect, so only a run that needs it pays for that."""

from __future__ import annotations

import os

from pipelines.execute import PipelineRun
from pipelines.session import Session

STARTUP_TIMEOUT_S = 180


def run_flow(session: Session, run: PipelineRun) -> None:
    """Run every stage as a task of one flow; what became of them is in `run.outcomes`."""
    _configure(session)
    from pipelines.flows import run_in_process

    run_in_process(session, run)


def _configure(session: Session) -> None:
    """Set before Prefect is imported; what the user has set stands."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # the command line tells what went wrong
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.setdefault("PREFECT_HOME", str(session.workspace.home / "prefect"))
        os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(STARTUP_TIMEOUT_S))
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "ERROR")
