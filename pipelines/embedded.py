"""A pipeline run as a Prefect flow from this process: on the server in PREFECT_API_URL, else on a temporary
one that lives as long as this process. Imports Prefect, so only a run that needs it pays for that."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from m4v.core.errors import InfrastructureError
from pipelines.execute import PipelineRun
from pipelines.launchers.local import free_port
from pipelines.session import Session

STARTUP_TIMEOUT_S = 180
STOP_S = 10.0
HEALTH_TIMEOUT_S = 10.0
# Set before Prefect is imported; what the user has set stands.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its pages show the log, the command line its own lines
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


def run_flow(session: Session, run: PipelineRun, tell: Callable[[str], None]) -> None:
    """Run every stage as a task of one flow; what became of them is in `run.outcomes`. `tell` hears what takes
    its time before, and where to watch it.

    Raises InfrastructureError when the server in PREFECT_API_URL does not answer, or a temporary one does
    not start.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    server = None
    if not os.environ.get("PREFECT_API_URL"):
        tell("starting a temporary Prefect server (--no-prefect runs without one)")
        server = _TemporaryServer(session.workspace.home / "prefect")
        # Exit handlers run last in, first out: what Prefect still has to send goes before the server does.
        atexit.register(server.stop)
        os.environ["PREFECT_API_URL"] = server.api_url
    from pipelines.flows import run_in_process  # two seconds, while the server starts

    if server is not None:
        server.wait_until_ready()
    else:
        _check_answers(os.environ["PREFECT_API_URL"])
    tell(f"watch it at {os.environ['PREFECT_API_URL'].removesuffix('/api')}")
    run_in_process(session, run)


def _check_answers(api_url: str) -> None:
    """Raises InfrastructureError when there is no server at `api_url`."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise InfrastructureError(
            f"no Prefect server answers ({type(error).__name__})",
            value=api_url,
            where="PREFECT_API_URL",
            next_step="start it, unset the variable for a temporary server, or run with --no-prefect",
        )


class _TemporaryServer:
    """A Prefect server below our supervisor: it ends with this process, even when that is killed.

    Its database stays in the home, so that later servers show earlier runs.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.api_url = f"http://127.0.0.1:{port}/api"
        self._log = directory / "server.log"
        os.environ.setdefault("PREFECT_HOME", str(directory))
        command = [sys.executable, "-m", "pipelines.supervise", "--grace", "5", "--parent", str(os.getpid()), "--"]
        command += [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PREFECT_UI_API_URL": self.api_url},
                start_new_session=True,  # Ctrl-C drains stages, which still report to it
            )

    def wait_until_ready(self) -> None:
        """Raises InfrastructureError with the log's place when it ends or does not answer in time."""
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=HEALTH_TIMEOUT_S) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    if client.get(f"{self.api_url}/health").status_code == httpx.codes.OK:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        raise InfrastructureError(
            "the temporary Prefect server did not start", where=str(self._log), next_step="run with --no-prefect"
        )

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its PDEATHSIG takes the server along
            self._process.wait()
