"""The Slurm launcher without a Slurm: what sbatch is given, what recorded answers mean, how a job's end is read."""

import os
import subprocess
from pathlib import Path

import pytest

from m4v.core.config import parse
from m4v.core.errors import ConfigError, ExitClass, InfrastructureError
from m4v.core.stage import ExitRecord, Resources, StageRequest, write_exit
from pipelines.launchers.base import DRAIN_ASKED
from pipelines.launchers.slurm import SlurmLauncher
from pipelines.launchers.slurm_client import JobState, SlurmClient, parse_fields, parse_states
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.launchers.slurm_endings import ending_of_job, ending_of_state, suspects
from pipelines.launchers.slurm_files import JobEnd, JobStart, append_start, is_open, read_starts, write_end
from pipelines.launchers.slurm_node import command
from pipelines.launchers.slurm_script import job_spec, render
from pipelines.recipe import Profile

# Answers of Slurm 22.05.
SQUEUE = """\
3|PENDING|BeginTime|
12|RUNNING|None|n[1-2]
13|COMPLETING|None|n3
2|CANCELLED|BeginTime|
11|NODE_FAIL|NodeDown|n1
"""
SACCT = "14|CANCELLED by 1000|None|n1\n"
SCONTROL_NODE = (
    "NodeName=n1 Arch=x86_64 CoresPerSocket=4  CPUAlloc=0 CPUTot=4 CPULoad=1.10 AvailableFeatures=(null) "
    "NodeAddr=127.0.0.1 NodeHostName=vm Port=17821 Version=22.05.8 OS=Linux 6.1.0 #1 SMP State=IDLE Reason=Not "
    "responding [slurm@2026-11-22T01:07:00] Comment=(null)"
)


def request(folder: Path, ranks: int = 1, stage: str = "train") -> StageRequest:
    return StageRequest(
        stage=stage, stage_version=1, function="m:f", config_model="m:C", stage_key="ab" * 32, attempt_id="0attempt",
        config={}, seed=0, inputs=(), outputs=(), store_uri=str(folder), work_dir=str(folder / "work" / "0attempt"),
        state_uri=str(folder), items_uri=str(folder), resources=Resources(ranks=ranks, threads=2, workers=1),
    )  # fmt: skip


def config(**values) -> SlurmConfig:
    return parse(SlurmConfig, values, "test")


def test_squeue_and_sacct_answers():
    states = parse_states(SQUEUE)
    assert [s.is_live for s in states] == [True, True, True, False, False]
    assert states[1] == JobState("12", "RUNNING", "", "n[1-2]")
    assert parse_states(SACCT)[0].state == "CANCELLED"
    assert parse_states("") == []
    with pytest.raises(InfrastructureError):
        parse_states("slurm_load_jobs error: something")


def test_scontrol_values_may_hold_blanks():
    fields = parse_fields(SCONTROL_NODE)
    assert fields["NodeAddr"] == "127.0.0.1"
    assert fields["OS"] == "Linux 6.1.0 #1 SMP"
    assert fields["Reason"].startswith("Not responding")
    assert fields["Comment"] == ""


def test_the_script_asks_for_what_the_profile_says(tmp_path):
    profile = config(
        partition="gpu", account="video", gres="gpu:h200:8", constraint="ib&h200", time_minutes=240, exclude=["n9"],
        options=["--exclusive"], setup="/opt/env's.sh", cpus_per_node=96, stages={"train": {"time_minutes": 2880}},
    )  # fmt: skip
    script = render(request(tmp_path, ranks=16), profile.of_stage("train"), exclude=["n3"])
    for line in (
        f"#SBATCH --job-name=m4v-{'ab' * 6}-0attempt", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1",
        '#SBATCH --partition="gpu"', '#SBATCH --gres="gpu:h200:8"', '#SBATCH --constraint="ib&h200"',
        '#SBATCH --time="2880"', '#SBATCH --exclude="n3,n9"', "#SBATCH --exclusive", "#SBATCH --signal=B:TERM@120",
        "#SBATCH --requeue", "export OMP_NUM_THREADS=2", "export PYTHONHASHSEED=0",
    ):  # fmt: skip
        assert line in script.splitlines()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert script.splitlines()[-1].startswith("exec ")
    assert job_spec(request(tmp_path, ranks=16), profile).srun == ("--cpus-per-task=96",)


def test_containers_wrap_the_task(tmp_path):
    apptainer = config(container={"image": "/images/m4v.sif", "mounts": ["/data:/data"]})
    assert job_spec(request(tmp_path), apptainer).task == (
        "apptainer", "exec", "--nv", "--bind", "/data:/data", "/images/m4v.sif",
    )  # fmt: skip
    pyxis = config(container={"image": "registry/m4v:1", "runtime": "pyxis", "python": "/opt/bin/python"})
    spec = job_spec(request(tmp_path), pyxis)
    assert (spec.srun, spec.task, spec.python) == (("--container-image=registry/m4v:1",), (), "/opt/bin/python")


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "a b"},
        {"partition": "gpu\n#SBATCH --uid=0"},
        {"options": ["--job-name=x"]},
        {"options": ["--gres=gpu:1"]},
        {"options": ["rm -rf"]},
        {"setup": "relative.sh"},
        {"memory": "lots"},
        {"time_minutes": 2, "drain_s": 120},
        {"partitions": "gpu"},
    ],
)
def test_what_a_profile_may_not_say(values):
    with pytest.raises(ConfigError):
        config(**values)


def test_ranks_fill_whole_nodes():
    assert config().nodes(3) == (1, 3)
    assert config().nodes(24) == (3, 8)
    with pytest.raises(ConfigError, match="whole nodes"):
        config().nodes(12)
    with pytest.raises(ConfigError, match="whole nodes"):
        parse(Profile, {"launcher": "slurm", "default": {"ranks": 12}}, "profile")
    with pytest.raises(ConfigError, match="launcher: slurm"):
        parse(Profile, {"slurm": {}}, "profile")


def test_a_path_that_sbatch_cannot_take(tmp_path):
    with pytest.raises(ConfigError, match="path"):
        render(request(tmp_path / "100%"), config())


def test_the_target_is_the_nodes_not_this_machine():
    target = SlurmLauncher(config(architecture="sm_90", kernels="mamba-ssm 2.3.2")).target(Resources(device="cuda"))
    assert (target.device, target.architecture, target.kernels) == ("cuda", "sm_90", "mamba-ssm 2.3.2")
    of_cpu = SlurmLauncher(config(architecture="sm_90", kernels="mamba-ssm 2.3.2")).target(Resources())
    assert of_cpu == SlurmLauncher(config()).target(Resources())
    assert of_cpu.kernels == "torch"
    assert SlurmLauncher(config(architecture="x86_64-avx2")).target(Resources()).architecture == "x86_64-avx2"
    with pytest.raises(ConfigError, match="GPUs"):
        SlurmLauncher(config()).target(Resources(device="cuda"))


def test_the_command_of_a_node(tmp_path):
    environment = {"SLURM_NODEID": "1", "M4V_START": "2", "M4V_MASTER_ADDR": "10.0.0.1", "M4V_MASTER_PORT": "15001"}
    words = command(job_spec(request(tmp_path, 16), config(python="/opt/python")), tmp_path / "a", environment)
    line = " ".join(words)
    assert words[:3] == ["/opt/python", "-m", "pipelines.supervise"]
    assert f"--fence {tmp_path}/current=0attempt --fence {tmp_path}/a/start=2" in line
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 8 --max-restarts 0" in line
    assert "--master-addr 10.0.0.1 --master-port 15001" in line
    single = command(job_spec(request(tmp_path), config()), tmp_path / "a", environment)
    assert "torch.distributed.run" not in single
    with pytest.raises(ConfigError, match="step"):
        command(job_spec(request(tmp_path), config()), tmp_path, {})


# Endings


def exits(folder: Path, *classes: int | None, message: str = "") -> None:
    for rank, exit_class in enumerate(classes):
        if exit_class is not None:
            write_exit(folder, ExitRecord(rank=rank, exit_class=exit_class, message=message))


def spec(tmp_path: Path, ranks: int = 4):
    return job_spec(request(tmp_path, ranks), config(ranks_per_node=2))


def test_a_gang_that_was_drained_by_slurm_was_preempted_not_failed(tmp_path):
    exits(tmp_path, 40, 40, 40, 40)
    end = JobEnd(returncode=1, nodes=("n1", "n2"), preempted=True)
    ending = ending_of_job(end, spec(tmp_path), tmp_path)
    assert (ending.exit_class, ending.preempted) == (ExitClass.DRAINED, True)
    (tmp_path / DRAIN_ASKED).touch()
    asked = ending_of_job(end.model_copy(update={"preempted": False}), spec(tmp_path), tmp_path)
    assert (asked.exit_class, asked.preempted) == (ExitClass.DRAINED, False)


def test_the_node_of_a_rank_without_a_word_is_to_blame(tmp_path):
    exits(tmp_path, 30, 30, 30, None)
    ending = ending_of_job(JobEnd(returncode=1, nodes=("n1", "n2")), spec(tmp_path), tmp_path)
    assert (ending.exit_class, ending.nodes) == (ExitClass.INFRASTRUCTURE, ("n2",))


def test_a_device_fault_is_the_fault_of_its_node(tmp_path):
    records = [ExitRecord(rank=0, exit_class=30, message="CUDA error: uncorrectable ECC error encountered")]
    assert suspects(records, ("n1", "n2"), spec(tmp_path)) == ("n1",)
    assert suspects([], ("n1", "n2"), spec(tmp_path)) == (), "both at once: no node's fault"


@pytest.mark.parametrize(
    ("state", "asked", "expected", "preempted"),
    [
        ("NODE_FAIL", False, 30, False),
        ("PREEMPTED", False, 30, True),
        ("TIMEOUT", False, 30, False),
        ("TIMEOUT", True, 40, False),
        ("OUT_OF_MEMORY", False, 30, False),
        ("CANCELLED", False, 40, False),
        ("FAILED", False, 30, False),
        (None, False, 30, False),
    ],
)
def test_a_job_that_left_no_word(state, asked, expected, preempted):
    ending = ending_of_state(None if state is None else JobState("1", state, "", "n1"), ["n1"], asked)
    assert (ending.exit_class, ending.preempted) == (expected, preempted)
    assert ending.message
    assert (ending.nodes == ("n1",)) == (state in ("NODE_FAIL", "FAILED", None))


def test_a_line_cut_off_by_a_lost_node_hides_no_other(tmp_path):
    append_start(tmp_path, JobStart(start=0, job_id="1", nodes=("n1",), at=1.0))
    with (tmp_path / "starts.jsonl").open("a") as stream:
        stream.write('{"start": 1, "jo')
    append_start(tmp_path, JobStart(start=2, job_id="1", nodes=("n2",), at=2.0))
    assert [start.start for start in read_starts(tmp_path)] == [0, 2]


# A command that answers as Slurm did


def fake_command(folder: Path, name: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
    program = folder / name
    (folder / f"{name}.out").write_text(stdout)
    (folder / f"{name}.err").write_text(stderr)
    program.write_text(f'#!/bin/sh\ncat "$0.out"\ncat "$0.err" >&2\nexit {code}\n')
    program.chmod(0o755)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


def test_what_sbatch_refuses_is_a_config_error_and_silence_is_not(answers):
    refused = "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    fake_command(answers, "sbatch", stderr=refused, code=1)
    with pytest.raises(ConfigError, match="Invalid partition name"):
        SlurmClient().submit(answers / "job.sh")
    away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n"
    fake_command(answers, "sbatch", stderr=away, code=1)
    with pytest.raises(InfrastructureError, match="Unable to contact"):
        SlurmClient().submit(answers / "job.sh")
    fake_command(answers, "sbatch", stdout="4711;cluster\n")
    assert SlurmClient().submit(answers / "job.sh") == "4711"


def test_without_accounts_a_forgotten_job_is_none(answers):
    fake_command(answers, "squeue", stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
    fake_command(answers, "sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    assert SlurmClient().state("7") is None
    fake_command(answers, "sacct", stdout="7|NODE_FAIL|None|n1\n")
    assert SlurmClient().state("7") == JobState("7", "NODE_FAIL", "", "n1")


def test_nodes_that_are_out_of_order(answers):
    fake_command(answers, "sinfo", stdout="n1|idle\nn2|down*\nn3|drained\n")
    assert SlurmClient().down(["n1", "n2", "n3", "n4"]) == ["n2", "n3", "n4"]


def test_an_attempt_is_open_until_its_job_has_said_its_last_word(tmp_path):
    assert not is_open(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    assert is_open(tmp_path)
    write_end(tmp_path, JobEnd())
    assert not is_open(tmp_path)
