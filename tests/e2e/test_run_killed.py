"""A command line that was killed or came to its end leaves nothing: no temporary Prefect server, no stage's process."""

import json
import os
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from e2e_support import descendants, m4v, start, wait_for, wait_until_gone, working_attempt

GONE_S = 120
PHONE_HOME = ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK")


def test_neither_a_killed_nor_a_finished_run_leaves_a_server_or_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of the command line alone, as the kernel does it: nothing can clean up but the supervisors."""
    for name in (*PHONE_HOME, "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    home, output = tmp_path / "home", tmp_path / "output"
    process = start(home, "run", "micro", "--until", "curate", output=output)
    wait_for(lambda: working_attempt(home, "curate"), process, output, "curation began")
    process.send_signal(signal.SIGSTOP)  # so that no stage comes or goes until all is looked at
    below = descendants(process.pid)
    stages = [p for p in below if "pipelines.stage_process" in _line(p)]
    url = next(line for line in output.read_text().splitlines() if line.startswith("watch it at ")).split()[-1]
    assert httpx.get(f"{url}/api/admin/settings", timeout=300).json()["server"]["analytics_enabled"] is False
    assert "<html" in httpx.get(url, timeout=300).text, "the pages are there to watch the run"
    servers = [p for p in below if "uvicorn" in _line(p)]
    assert servers
    assert stages
    for server in servers:
        assert {name: server.environ()[name] for name in PHONE_HOME} == dict(
            zip(PHONE_HOME, ("false", "1"), strict=True)
        )
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_until_gone(below, GONE_S) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/api/health", timeout=5)
    # The same command ends the run, and its own server with it.
    done = m4v(home, "run", "micro", "--until", "curate")
    assert "watch it at http://127.0.0.1:" in done.stdout
    mark = str(home).encode()
    assert [p for p in psutil.process_iter() if mark in _environment(p)] == []
    assert json.loads(m4v(home, "runs", "list", "--json").stdout)[0]["exit_class"] == 0


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _environment(process: psutil.Process) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return b""
