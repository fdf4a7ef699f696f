"""The stage process: request to result, exit classes with their reasons, environment checks, light imports."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from m4v.core.artifacts import ArtifactKind, read_manifest, verify
from m4v.core.errors import (
    ConfigError,
    DataIntegrityError,
    Drained,
    ExitClass,
    InfrastructureError,
    InputError,
    NeedsHuman,
)
from m4v.core.stage import ExitRecord, OutputRef, Resources, StageRequest, StageResult, write_json
from m4v.core.storage import Storage
from pipelines.environment import architecture, file_digest
from pipelines.stage_process import call_stage, classify, main

FAULTS = Path(__file__).parent.parent / "faults"


def request_in(home: Path, **changed: object) -> Path:
    work = home / "work" / "key" / "attempt"
    work.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "stage": "count",
        "stage_version": 1,
        "function": "stages_for_faults:count",
        "config_model": "stages_for_faults:CountConfig",
        "stage_key": "f" * 64,
        "attempt_id": "attempt",
        "config": {"items": 3, "factor": 2, "label": "x"},
        "seed": 1,
        "inputs": (),
        "outputs": (OutputRef(name="lines", kind=ArtifactKind.SOURCE),),
        "store_uri": str(home / "store"),
        "work_dir": str(work),
        "state_uri": str(home / "store" / "state" / "key"),
        "items_uri": str(home / "store" / "items"),
        "locations": {"switches": str(home)},
    }
    path = work / "request.json"
    write_json(path, StageRequest.model_validate({**values, **changed}))
    return path


def run(path: Path, **environment: str) -> tuple[int, ExitRecord]:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.stage_process", str(path)],
        env=os.environ | {"PYTHONPATH": str(FAULTS)} | environment,
        capture_output=True,
        timeout=300,
        check=False,
    )
    rank = environment.get("RANK", "0")
    return done.returncode, ExitRecord.model_validate_json((path.parent / f"exit.{rank}.json").read_bytes())


def test_outputs_manifest_result_and_exit_record(tmp_path):
    path = request_in(tmp_path)
    code, record = run(path)
    assert (code, record.exit_class) == (0, 0)
    result = StageResult.model_validate_json((path.parent / "result.json").read_bytes())
    (output,) = result.outputs
    assert Path(output.staging, "lines.txt").read_text() == "x 0 1\nx 1 3\nx 2 5\n"
    manifest = verify(Storage(output.staging), output.artifact_id)
    assert manifest.summary == {"items": 3}
    assert (output.files, output.size_bytes) == (2, manifest.size_bytes)
    assert result.metrics == {"items": 3}
    assert result.environment["python"] == sys.version.split()[0]
    assert json.loads((path.parent / "progress.json").read_text())["done"] == 3


@pytest.mark.parametrize(
    ("switch", "exit_class", "message"),
    [
        ("infrastructure", 30, "the network is away"),
        ("integrity", 20, "bytes are wrong"),
        ("human", 50, "somebody must look"),
        ("bug", 1, "ZeroDivisionError: a bug"),
    ],
)
def test_exit_classes_keep_their_reason(tmp_path, switch, exit_class, message):
    (tmp_path / switch).touch()
    path = request_in(tmp_path)
    code, record = run(path)
    assert code == record.exit_class == exit_class
    assert message in record.message
    assert "Traceback" in record.traceback
    assert not (path.parent / "result.json").exists()


def test_a_drain_request_saves_state_and_the_next_start_goes_on(tmp_path):
    path = request_in(tmp_path)
    (path.parent / "drain").touch()
    assert run(path)[0] == ExitClass.DRAINED
    (path.parent / "drain").unlink()
    assert run(path)[0] == 0


def test_staging_starts_clean(tmp_path):
    path = request_in(tmp_path)
    stale = path.parent / "staging" / "lines" / "half.bin"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of a dead attempt")
    (path.parent / "exit.3.json").write_text("{}")
    assert run(path)[0] == 0
    assert [f.path for f in read_manifest(Storage(str(stale.parent))).files] == ["deep/label.txt", "lines.txt"]
    assert not (path.parent / "exit.3.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {"itmes": 3}}, "did you mean items?"),
        ({"function": "stages_for_faults:nothing"}, "cannot load it"),
        ({"function": "no_such_module:run"}, "cannot load it"),
        ({"resources": Resources(ranks=2, threads=1, workers=1)}, "the request is for 2 ranks"),
        ({"lock_file": "LOCK", "lock_digest": "0" * 64}, "lock file changed since the plan"),
        (
            {"numerics": {"device": "cpu", "architecture": "sparc"}},
            "architecture differs from the stage key's ('sparc')",
        ),
        ({"numerics": {"device": "cpu", "world_size": 4}}, "world_size differs"),
    ],
)
def test_config_errors_exit_10(tmp_path, changed, message):
    if "lock_file" in changed:
        (tmp_path / "LOCK").write_text("numpy\n")
        changed = {**changed, "lock_file": str(tmp_path / "LOCK")}
    code, record = run(request_in(tmp_path, **changed))
    assert code == ExitClass.CONFIG
    assert message in record.message


def test_the_first_package_that_differs_from_the_lock_is_named(tmp_path):
    lock = tmp_path / "constraints.txt"
    lock.write_text("# pinned\nzzz-not-installed==1.0\npydantic==0.0.1\nnumpy==0.0.2 ; python_version < '3'\n")
    path = request_in(tmp_path, lock_file=str(lock), lock_digest=file_digest(lock))
    code, record = run(path)
    assert code == ExitClass.CONFIG
    assert "pydantic" in record.message
    assert "==0.0.1" in record.message
    assert run(path, RANK="1", WORLD_SIZE="1")[0] == 0, "under torchrun rank 0 alone checks"


def test_a_missing_package_is_a_config_error(tmp_path):
    (tmp_path / "needs_it.py").write_text("import no_such_package_anywhere\n")
    code, record = run(request_in(tmp_path, function="needs_it:run"), PYTHONPATH=f"{FAULTS}:{tmp_path}")
    assert code == ExitClass.CONFIG
    assert "no_such_package_anywhere" in record.message
    assert "pip install" in record.message


def test_a_request_that_does_not_parse_exits_10_with_the_field(tmp_path):
    path = request_in(tmp_path)
    data = json.loads(path.read_text())
    data["seed"] = "many"
    path.write_text(json.dumps(data))
    code, record = run(path)
    assert code == ExitClass.CONFIG
    assert "seed" in record.message


def test_usage():
    assert main([]) == ExitClass.USAGE


def test_numerics_as_seen_stand_in_the_environment(tmp_path):
    numerics = {"device": "cpu", "architecture": architecture("cpu"), "world_size": 1, "threads": 1, "dtype": "float32"}
    path = request_in(tmp_path, numerics=numerics)
    assert run(path)[0] == 0
    result = StageResult.model_validate_json((path.parent / "result.json").read_bytes())
    assert result.environment["numerics"] == {**numerics, "kernels": "torch"}


def test_neither_prefect_nor_sqlalchemy_nor_torch_is_imported(tmp_path):
    path = request_in(tmp_path)
    script = textwrap.dedent(
        f"""
        import sys
        from pipelines.stage_process import main
        assert main([{str(path)!r}]) == 0
        heavy = {{"prefect", "sqlalchemy", "alembic", "torch", "ray", "fastapi"}} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    environment = os.environ | {"PYTHONPATH": str(FAULTS)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_classify_exceptions():
    class DistBackendError(RuntimeError):
        __module__ = "torch.distributed"

    cases = {
        ExitClass.CONFIG: [ConfigError("x"), InputError("x")],
        ExitClass.DATA_INTEGRITY: [DataIntegrityError("x")],
        ExitClass.INFRASTRUCTURE: [
            InfrastructureError("x"), ConnectionResetError(), TimeoutError(), OSError(28, "No space left on device"),
            DistBackendError("NCCL watchdog"), RuntimeError("CUDA error: uncorrectable ECC error encountered"),
            RuntimeError("gloo: Connection closed by peer [127.0.0.1]"),
        ],
        ExitClass.DRAINED: [Drained("x")],
        ExitClass.NEEDS_HUMAN: [NeedsHuman("x")],
        ExitClass.BUG: [ValueError("x"), RuntimeError("shape mismatch"), FileNotFoundError(2, "gone"), KeyError("x")],
    }  # fmt: skip
    for expected, errors in cases.items():
        assert [classify(e) for e in errors] == [expected] * len(errors)


def test_an_operation_that_torch_refuses_names_the_switch():
    def stage(said):
        raise RuntimeError(said)

    said = "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set 'torch.use_…'"
    with pytest.raises(ConfigError, match=r"'grid_sampler_2d_backward_cuda'.*engine\.deterministic: false"):
        call_stage(stage, said)
    with pytest.raises(RuntimeError, match="something else"):
        call_stage(stage, "something else")
