"""A real Prefect server, a real process worker: deployments, a schedule that fires, refused parameters."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

STOP_AFTER = "source.shapes"
START_TIMEOUT_S, RUN_TIMEOUT_S = 120, 200


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    pytest.fail(f"server did not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a running server and worker."""
    base = tmp_path_factory.mktemp("prefect")
    port = _free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(base / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_PREFETCH_SECONDS": "2",
        "M4V_HOME": str(base / "home"),
    }
    binary = str(Path(sys.executable).with_name("prefect"))
    processes = []
    try:
        for name, command in (
            ("server", [binary, "server", "start", "--host", "127.0.0.1", "--port", str(port)]),
            ("worker", [binary, "worker", "start", "--pool", "m4v", "--type", "process"]),
        ):
            log = base / f"{name}.log"
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT
                )
            )
            if name == "server":
                _wait_for(f"{environment['PREFECT_API_URL']}/health", processes[0], log)
        yield environment
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _m4v(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def _deploy(environment: dict[str, str], *arguments: str) -> dict[str, dict[str, str]]:
    import json

    done = _m4v(environment, "deploy", "micro", "--pool", "m4v", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_a_scheduled_run_fires_and_the_worker_runs_it(prefect: dict[str, str]) -> None:
    rows = _deploy(prefect, "--cron", "* * * * *", "--until", STOP_AFTER)
    parent = rows["m4v-pipeline/micro"]
    assert "m4v-stage/micro-encode" in rows
    api = prefect["PREFECT_API_URL"]
    wanted = {"deployments": {"id": {"any_": [parent["deployment_id"]]}}, "sort": "START_TIME_ASC"}
    deadline = time.monotonic() + RUN_TIMEOUT_S
    states: list[str] = []
    while time.monotonic() < deadline:
        runs = httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=10).json()
        states = [f"{r['state']['type']}: {r['state'].get('message')}" for r in runs]
        finished = [r for r in runs if r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]
        if finished:
            break
        time.sleep(1)
    assert finished, states
    assert finished[0]["state"]["type"] == "COMPLETED", states
    assert finished[0]["auto_scheduled"]
    listed = _m4v(prefect, "artifacts", "list", "--json")
    assert '"source"' in listed.stdout
    artifacts = httpx.post(f"{api}/artifacts/filter", json={}, timeout=10).json()
    assert {"plan", "summary"} <= {a["key"] for a in artifacts}


def test_a_bad_parameter_is_refused_with_its_name(prefect: dict[str, str]) -> None:
    parent = _deploy(prefect)["m4v-pipeline/micro"]
    url = f"{prefect['PREFECT_API_URL']}/deployments/{parent['deployment_id']}/create_flow_run"
    answer = httpx.post(url, json={"parameters": {"recipe": "micro", "until": {"not": "a name"}}}, timeout=10)
    assert answer.status_code == 409
    assert "until" in answer.text
    unknown = httpx.post(url, json={"parameters": {"recipe": "micro", "untill": "curate"}}, timeout=10)
    assert unknown.status_code == 409
    assert "untill" in unknown.text


def test_deploy_refuses_a_bad_cron_line_and_a_missing_server(prefect: dict[str, str]) -> None:
    bad = _m4v(prefect, "deploy", "micro", "--cron", "every monday")
    assert bad.returncode == 10
    assert "every monday" in bad.stderr
    alone = {k: v for k, v in prefect.items() if k != "PREFECT_API_URL"}
    missing = _m4v(alone, "deploy", "micro")
    assert missing.returncode == 10
    assert "prefect server start" in missing.stderr
