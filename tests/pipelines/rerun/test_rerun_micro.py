"""Stages of the house, really run and executed again on this machine: identical bytes, every stage of `micro`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4v.core.errors import ExitClass
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.rerun import Verdict, Verifier
from pipelines.workspace import Workspace

TIMEOUT_S = 500
LONG_S = 2400  # all of micro, on a busy machine
M4V = (sys.executable, "-m", "pipelines.cli.main")


def m4v(home: Path, *arguments: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "M4V_HOME": str(home)}
    return subprocess.run(
        [*M4V, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip


@pytest.fixture
def home(micro_of_module: Path) -> Path:
    """A home in which `micro` ran: its untrained checkpoint is the quick stage to execute again."""
    return micro_of_module


def test_a_numeric_stage_of_the_house_is_identical_from_its_row_alone(home):
    workspace = Workspace.open(home)
    with Ledger.open(workspace.ledger_url) as ledger:
        (run,) = ledger.runs(stage="init")
        found = Verifier(workspace, ledger, LocalLauncher).verify(run.run_id)
    assert found.verdict is Verdict.IDENTICAL
    assert found.stages[0].outputs[0].kind == "checkpoint"


def test_a_changed_tensor_of_the_record_is_reported_where_it_is(home, tmp_path):
    """The stored checkpoint is made wrong (file and manifest): the repeated run does not agree with it."""
    from safetensors.numpy import load_file, save_file

    from m4v.core.artifacts import ArtifactKind, build_manifest, read_manifest, write_manifest
    from m4v.core.stage import OutputResult
    from m4v.core.storage import Storage
    from pipelines.ledger import PortRow
    from pipelines.rerun import Tolerance
    from pipelines.rerun.outputs import compare_output

    workspace = Workspace.open(home)
    with Ledger.open(workspace.ledger_url) as ledger:
        port = ledger.runs(stage="init")[0].outputs[0]
        recorded = Storage(ledger.artifact(port.artifact_id, port.kind).uri).local_root
        staging = tmp_path / "staging"
        staging.mkdir()
        for file in read_manifest(Storage(str(recorded))).files:
            (staging / file.path).write_bytes((recorded / file.path).read_bytes())
        tensors = load_file(staging / "model.safetensors")
        name = sorted(tensors)[3]
        flat = tensors[name].reshape(-1)
        flat[-1] += 0.25
        save_file(tensors, staging / "model.safetensors")
        manifest = build_manifest(staging, ArtifactKind.CHECKPOINT, {})
        write_manifest(staging, manifest)
        made = OutputResult(
            name=port.name, kind=port.kind, artifact_id=manifest.artifact_id, staging=str(staging),
            size_bytes=manifest.size_bytes, files=len(manifest.files),
        )  # fmt: skip
        assert isinstance(port, PortRow)
        found = compare_output(ledger, port, made, Tolerance())
    (file,) = found.different
    (tensor,) = [t for t in file.tensors if t.verdict is Verdict.DIFFERS]
    assert (found.verdict, file.path, tensor.name, tensor.differing) == (Verdict.DIFFERS, "model.safetensors", name, 1)
    assert tensor.max_abs == pytest.approx(0.25)
    last = [size - 1 for size in tensor.shape]
    assert tensor.first.where == f"tensor {name} at {last}"
    assert found.first.startswith(f"model.safetensors: tensor {name} at {last}")


def test_the_command_tells_and_records(home):
    with Ledger.open(Workspace.open(home).ledger_url) as ledger:
        run_id = ledger.runs(stage="init")[0].run_id
    done = m4v(home, "runs", "rerun", run_id, "--verify", "--json")
    assert done.returncode == ExitClass.OK, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema_version"], found["verdict"], found["subject"]) == (1, "identical", run_id)
    shown = json.loads(m4v(home, "runs", "show", run_id, "--json").stdout)
    assert shown["verifications"][-1]["verdict"] == "identical"
    assert shown["environment"]["code"]["version"]
    assert shown["lock_digest"] == shown["key_record"]["lock_digest"]


@pytest.mark.deep
@pytest.mark.timeout(3 * LONG_S)
def test_every_stage_of_micro_is_identical_also_when_it_is_killed_on_the_way(home, tmp_path):
    """Killed after its third verdict, the same command goes on with the fourth stage, and ends with all sixteen."""
    with Ledger.open(Workspace.open(home).ledger_url) as ledger:
        run_id = ledger.pipeline_runs(recipe="micro")[-1].pipeline_run_id
        before = {run.run_id: len(ledger.verifications(run.run_id)) for run in ledger.runs(limit=None)}
    environment = {**os.environ, "M4V_HOME": str(home)}
    with (tmp_path / "out").open("w") as out:
        first = subprocess.Popen(
            [*M4V, "runs", "rerun", run_id, "--verify"], env=environment, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + LONG_S
    while (tmp_path / "out").read_text().count(": identical after") < 3:
        assert first.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = m4v(home, "runs", "rerun", run_id, "--verify", "--json", timeout_s=LONG_S)
    assert done.returncode == ExitClass.OK, done.stderr
    found = json.loads(done.stdout)
    assert len(found["stages"]) == 16
    assert {s["node_id"]: s["verdict"] for s in found["stages"]} == {s["node_id"]: "identical" for s in found["stages"]}
    with Ledger.open(Workspace.open(home).ledger_url) as ledger:
        verdicts = {run: ledger.verifications(run)[count:] for run, count in before.items()}
        assert ledger.verify_chain().ok
    assert {run: len(rows) for run, rows in verdicts.items()} == dict.fromkeys(before, 1), "none was executed twice"
    assert {row.facts["verification_id"] for rows in verdicts.values() for row in rows} == {found["verification_id"]}
    assert list((home / "rerun").iterdir()) == [], "what the killed one left is gone"
