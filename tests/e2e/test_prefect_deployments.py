"""A real Prefect server and a real process worker: deployments, a schedule that fires, refused parameters, states
and artifacts that tell the truth, a cancelled run that leaves nothing.

The schedule is set first and looked at last: a cron line cannot fire before the next full minute.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import nasty
import psutil
import pytest
from e2e_support import artifact_ids, m4v, read_json, run_json, start, wait_until_gone, working_attempt

from m4v.core.errors import ExitClass
from pipelines.launchers.local import free_port
from pipelines.ledger import Ledger

STOP_AFTER = "source.shapes"
START_TIMEOUT_S, RUN_TIMEOUT_S = 600, 1200
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Server(NamedTuple):
    """A running server with its worker. `environment` points to it, `home` is the worker's."""

    environment: dict[str, str]
    home: Path

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """A busy server answers 503 now and then: its clients ask again, and so does this."""
        url, deadline = f"{self.environment['PREFECT_API_URL']}/{path}", time.monotonic() + 120
        while (answer := httpx.post(url, json=body, timeout=300)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(1)
        return answer

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.environment['PREFECT_API_URL']}/{path}", timeout=300).json()

    def artifacts(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        of_run = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        return {a["key"]: a for a in self.post("artifacts/filter", of_run).json()}

    def runs_of(self, deployment_id: str, states: set[str]) -> list[dict[str, Any]]:
        """The flow runs of a deployment that are in one of these states, the earliest first."""
        wanted = {
            "deployments": {"id": {"any_": [deployment_id]}},
            "flow_runs": {"state": {"type": {"any_": sorted(states)}}},
            "sort": "START_TIME_ASC",
        }
        return list(self.post("flow_runs/filter", wanted).json())

    def start(self, deployment_id: str, **parameters: Any) -> str:
        answer = self.post(f"deployments/{deployment_id}/create_flow_run", {"parameters": parameters})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def wait(self, what: str, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while time.monotonic() < deadline:
            value = found()
            if value:
                return value
            time.sleep(0.5)
        pytest.fail(f"{what} did not come about; worker:\n{(self.home.parent / 'worker.log').read_text()[-3000:]}")

    def finished(self, flow_run_id: str) -> dict[str, Any]:
        """The final state of a flow run."""

        def final() -> Any:
            state = self.get(f"flow_runs/{flow_run_id}")["state"]
            return state if state["type"] in FINAL else None

        return dict(self.wait(f"the end of flow run {flow_run_id}", final))


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # nobody listens yet
        time.sleep(0.3)
    pytest.fail(f"server did not answer:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("prefect")
    port = free_port()
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
            with log.open("wb") as stream:
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
                    )
                )
            # A worker makes its pool, and ends when somebody else makes it in the same moment.
            ready = {"server": "health", "worker": "work_pools/m4v"}[name]
            _wait_for(f"{environment['PREFECT_API_URL']}/{ready}", processes[-1], log)
        yield Server(environment, base / "home")
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # in the middle of a scheduled run, which nobody waits for
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    one.kill()
                process.wait()


@pytest.fixture(scope="module")
def deployments(prefect: Server) -> dict[str, str]:
    """`flow/name` -> id; the pipeline's fires every minute and stops after its first stage."""
    options = ("--pool", "m4v", "--cron", "* * * * *", "--until", STOP_AFTER, "--reconcile", "0 4 1 1 *")
    rows = read_json(prefect.home, "deploy", "micro", *options, environment=prefect.environment)
    return {row["name"]: row["deployment_id"] for row in rows}


@pytest.fixture(autouse=True)
def at_most_one_scheduled_run(prefect: Server, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each run that the schedule starts takes seconds of CPU, and one is enough: once it has begun, no more come."""
    yield
    if "deployments" not in request.fixturenames:
        return
    deployment = request.getfixturevalue("deployments")["m4v-pipeline/micro"]
    if not prefect.get(f"deployments/{deployment}")["paused"] and prefect.runs_of(deployment, FINAL | {"RUNNING"}):
        assert prefect.post(f"deployments/{deployment}/pause_deployment", {}).is_success


def test_there_is_a_deployment_of_the_pipeline_and_of_every_stage(prefect: Server, deployments: dict[str, str]) -> None:
    assert {"m4v-pipeline/micro", "m4v-stage/micro-encode", "m4v-stage/micro-train-t2i"} <= set(deployments)
    reconciling = prefect.get(f"deployments/{deployments['m4v-reconcile/m4v']}")
    assert (reconciling["entrypoint"], reconciling["path"]) == ("pipelines.reconcile.flow.reconcile", None)
    assert reconciling["schedules"][0]["schedule"]["cron"] == "0 4 1 1 *"
    parent = prefect.get(f"deployments/{deployments['m4v-pipeline/micro']}")
    assert parent["schedules"][0]["schedule"]["cron"] == "* * * * *"
    assert (parent["entrypoint"], parent["path"]) == ("pipelines.flows.pipeline", None), "no path of this machine"
    assert parent["parameters"]["until"] == STOP_AFTER


def test_whoever_makes_the_pool_first_both_go_on(prefect: Server) -> None:
    program = (
        "import asyncio; from pipelines.deploy import _ensure_pool\n"
        "async def both(): await asyncio.gather(*(_ensure_pool(f'pool-{i % 2}') for i in range(8)))\n"
        "asyncio.run(both())"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=prefect.environment, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [prefect.get(f"work_pools/pool-{i}")["type"] for i in range(2)] == ["process", "process"]


def test_nothing_phones_home(prefect: Server) -> None:
    assert prefect.get("admin/settings")["server"]["analytics_enabled"] is False


def test_a_bad_parameter_is_refused_with_its_name(prefect: Server, deployments: dict[str, str]) -> None:
    path = f"deployments/{deployments['m4v-pipeline/micro']}/create_flow_run"
    answer = prefect.post(path, {"parameters": {"recipe": "micro", "until": {"not": "a name"}}})
    assert answer.status_code == 409
    assert "until" in answer.text
    unknown = prefect.post(path, {"parameters": {"recipe": "micro", "untill": "curate"}})
    assert unknown.status_code == 409
    assert "untill" in unknown.text


def test_deploy_refuses_a_bad_cron_line_and_a_missing_server(prefect: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("deploy", "micro", "--cron", "every monday")
    bad = m4v(prefect.home, *line, code=ExitClass.CONFIG, environment=prefect.environment)
    assert "every monday" in bad.stderr
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    missing = m4v(prefect.home, "deploy", "micro", code=ExitClass.CONFIG)
    assert "prefect server start" in missing.stderr


def test_a_run_shows_its_plan_stages_progress_and_summary_on_the_given_server(
    prefect: Server, micro_home: Path, tmp_path: Path
) -> None:
    nodes = run_json(tmp_path, "micro", "--until", "curate", environment=prefect.environment)
    plain = {n["node_id"]: n for n in json.loads((micro_home.parent / "run.json").read_bytes())["nodes"]}
    assert artifact_ids(nodes) == artifact_ids({i: plain[i] for i in nodes}), "without Prefect they are the same"
    assert not (tmp_path / "prefect").exists(), "no temporary server beside a given one"
    flow_run = _latest_flow_run(prefect)
    assert flow_run["state"]["type"] == "COMPLETED"
    assert flow_run["name"].startswith("micro-")
    assert _tasks(prefect, flow_run) == dict.fromkeys(("source.shapes", "source.street", "curate"), "Completed")
    artifacts = prefect.artifacts(flow_run["id"])
    assert {"plan", "summary", "stage-curate", "stage-source-street"} <= set(artifacts)
    assert "| curate | blocked-on |" in artifacts["plan"]["data"]
    summary = json.loads(artifacts["summary"]["data"])
    assert {(row["stage"], row["status"]) for row in summary} >= {("curate", "ran")}
    progress = [a for key, a in artifacts.items() if key.startswith("progress-")]
    assert progress, "at least one stage took long enough to report"
    assert {a["data"] for a in progress} == {100.0}
    # What is a cache hit says so.
    changed = ("--until", "curate", "--set", "curate.filters.min_frames=18")
    run_json(tmp_path, "micro", *changed, environment=prefect.environment)
    tasks = _tasks(prefect, _latest_flow_run(prefect))
    assert tasks == {"source.shapes": "Cached", "source.street": "Cached", "curate": "Completed"}


def test_a_failed_stage_is_a_failed_flow_with_its_reason(prefect: Server, tmp_path: Path) -> None:
    wild = nasty.corpus(tmp_path / "wild")
    change = [
        f"sources.street.location={wild}",
        "sources.street.adapter.include=['**']",
        "curate.max_quarantine_rate=0.1",
    ]
    options = [word for override in change for word in ("--set", override)]
    run_json(
        tmp_path / "home", "micro", "--until", "encode", *options,
        code=ExitClass.DATA_INTEGRITY, environment=prefect.environment,
    )  # fmt: skip
    flow_run = _latest_flow_run(prefect)
    assert flow_run["state"]["type"] == "FAILED"
    assert "stage curate failed" in flow_run["state"]["message"]
    assert "items were quarantined" in flow_run["state"]["message"]
    tasks = _tasks(prefect, flow_run)
    assert (tasks["source.street"], tasks["curate"], tasks["encode"]) == ("Completed", "Failed", "Blocked")


def _reconciled(server: Server, home: Path, *options: str) -> list[dict[str, Any]]:
    at_once = () if "--grace" in options else ("--grace", "0")
    told = read_json(home, "reconcile", *at_once, *options, environment=server.environment)
    assert told["asked"]["prefect"]
    return list(told["findings"])


def _force(server: Server, flow_run: dict[str, Any], state: str) -> None:
    body = {"state": {"type": state}, "force": True}
    assert server.post(f"flow_runs/{flow_run['id']}/set_state", body).status_code == 201


def test_a_flow_run_that_prefect_took_for_crashed_gets_the_verdict_of_the_ledger(
    prefect: Server, tmp_path: Path
) -> None:
    run_json(tmp_path, "micro", "--until", STOP_AFTER, environment=prefect.environment)
    flow_run = _latest_flow_run(prefect)
    assert _reconciled(prefect, tmp_path) == []
    _force(prefect, flow_run, "CRASHED")
    assert _reconciled(prefect, tmp_path, "--grace", "3600") == [], "its own word may still come"
    (looked,) = _reconciled(prefect, tmp_path, "--dry-run")
    assert (looked["kind"], looked["subject"], looked["repaired"]) == ("flow-run", flow_run["id"], False)
    assert prefect.get(f"flow_runs/{flow_run['id']}")["state"]["type"] == "CRASHED"
    (found,) = _reconciled(prefect, tmp_path)
    assert "crashed in Prefect" in found["says"]
    assert found["repaired"]
    state = prefect.get(f"flow_runs/{flow_run['id']}")["state"]
    assert state["type"] == "COMPLETED"
    assert "as the ledger has it" in state["message"]
    assert _reconciled(prefect, tmp_path) == []


def test_a_run_at_work_is_put_back_and_one_that_was_cancelled_is_drained(prefect: Server, tmp_path: Path) -> None:
    clips = 100_000
    endless = ("--until", STOP_AFTER, "--set", f"sources.shapes.adapter.count={clips}")
    said = tmp_path / "said.txt"
    process = start(tmp_path, "run", "micro", *endless, output=said, errors=said, environment=prefect.environment)
    try:
        prefect.wait("drawn clips", lambda: working_attempt(tmp_path, STOP_AFTER, done=3, of=clips))
        flow_run = _latest_flow_run(prefect)
        _force(prefect, flow_run, "CRASHED")
        (found,) = _reconciled(prefect, tmp_path)
        assert "is at work" in found["says"]
        assert prefect.get(f"flow_runs/{flow_run['id']}")["state"]["type"] == "RUNNING"
        # What the button of its page does; no worker is there to end the process.
        cancelling = {"state": {"type": "CANCELLING"}, "force": False}
        assert prefect.post(f"flow_runs/{flow_run['id']}/set_state", cancelling).status_code == 201
        assert _reconciled(prefect, tmp_path, "--grace", "3600") == []
        (found,) = _reconciled(prefect, tmp_path)
        assert found["repair"] == "drained"
        assert process.wait(RUN_TIMEOUT_S) == ExitClass.DRAINED
    finally:
        process.kill()
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        assert ledger.pipeline_runs()[0].status == "drained"
    assert prefect.get(f"flow_runs/{flow_run['id']}")["state"]["type"] == "CANCELLED"


def _latest_flow_run(server: Server) -> dict[str, Any]:
    """The latest that no deployment started."""
    by_hand = {"flow_runs": {"deployment_id": {"is_null_": True}}, "sort": "START_TIME_DESC", "limit": 1}
    return dict(server.post("flow_runs/filter", by_hand).json()[0])


def _tasks(server: Server, flow_run: dict[str, Any]) -> dict[str, str]:
    """Name and state of the tasks of a flow run, once the server has recorded them all."""
    of_run = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}

    def recorded() -> dict[str, str] | None:
        rows = server.post("task_runs/filter", of_run).json()
        done = {r["name"]: r["state_name"] for r in rows if r["state_type"] in FINAL}
        return done if rows and len(done) == len(rows) else None

    return dict(server.wait("the states of the tasks", recorded))


def test_a_server_that_does_not_answer_is_an_infrastructure_error(tmp_path: Path) -> None:
    nowhere = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    done = m4v(tmp_path, "run", "micro", "--until", STOP_AFTER, code=ExitClass.INFRASTRUCTURE, environment=nowhere)
    assert "no Prefect server answers" in done.stderr
    assert "--no-prefect" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_without_its_inputs_says_what_to_run_first(prefect: Server, deployments: dict[str, str]) -> None:
    state = prefect.finished(prefect.start(deployments["m4v-stage/micro-encode"]))
    assert state["type"] == "FAILED"
    assert "which the ledger does not have" in state["message"]
    assert "m4v run micro --until encode" in state["message"]


def test_a_cancelled_run_saves_its_state_and_leaves_no_process(prefect: Server, deployments: dict[str, str]) -> None:
    """Cancelled in Prefect is drained in the ledger, and only when the stage's processes are gone."""
    clips = 100_000  # endless, and no scheduled run of the recipe has as many
    endless = [f"sources.shapes.adapter.count={clips}"]
    flow_run_id = prefect.start(deployments["m4v-stage/micro-source-shapes"], overrides=endless)
    attempt = prefect.wait("drawn clips", lambda: working_attempt(prefect.home, "source.shapes", done=3, of=clips))
    work_dir = Path(attempt.work_dir)
    at_work = [p for p in psutil.process_iter(["cmdline"]) if any(str(work_dir) in w for w in p.info["cmdline"] or ())]
    assert at_work
    cancelling = {"state": {"type": "CANCELLING"}, "force": False}
    assert prefect.post(f"flow_runs/{flow_run_id}/set_state", cancelling).status_code == 201
    assert prefect.finished(flow_run_id)["type"] == "CANCELLED"
    assert wait_until_gone(at_work, 120) == []
    with Ledger.open(f"sqlite:///{prefect.home / 'ledger.db'}") as ledger:
        assert ledger.attempt(attempt.attempt_id).exit_class == ExitClass.DRAINED


def test_the_reconciliation_runs_as_a_flow_and_shows_what_it_found(
    prefect: Server, deployments: dict[str, str]
) -> None:
    with Ledger.open(f"sqlite:///{prefect.home / 'ledger.db'}") as ledger:
        claim = ledger.claim("cd" * 32, "somebody")
        attempt = ledger.begin_attempt(claim, stage="source", work_dir=str(prefect.home), log_path="none")
        ledger.release(claim)
    flow_run = prefect.start(deployments["m4v-reconcile/m4v"])
    state = prefect.finished(flow_run)
    assert state["type"] == "COMPLETED", state
    rows = json.loads(prefect.artifacts(flow_run)["reconciled"]["data"])
    assert ("lost-attempt", attempt) in {(row["kind"], row["subject"]) for row in rows}
    with Ledger.open(f"sqlite:///{prefect.home / 'ledger.db'}") as ledger:
        assert ledger.attempt(attempt).status == "lost"


def test_a_scheduled_run_fires_and_the_worker_runs_it(prefect: Server, deployments: dict[str, str]) -> None:
    ended, deployment = FINAL - {"CANCELLED"}, deployments["m4v-pipeline/micro"]
    first = prefect.wait("a scheduled run", lambda: prefect.runs_of(deployment, ended))[0]
    assert first["state"]["type"] == "COMPLETED", first["state"]
    assert first["auto_scheduled"]
    assert '"source"' in m4v(prefect.home, "artifacts", "list", "--json").stdout
    assert {"plan", "summary"} <= set(prefect.artifacts(first["id"]))
