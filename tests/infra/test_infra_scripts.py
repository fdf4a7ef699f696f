"""Scripts of infra/: they parse, the wheelhouse notices every change, and nvcc gets the named architectures only."""

import os
import subprocess
from pathlib import Path

import pytest

from m4v.core.config import parse
from pipelines.environment import parse_lock
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.recipe_files import parse_yaml

INFRA = Path(__file__).parents[2] / "infra"
WHEELHOUSE = INFRA / "wheelhouse.sh"


def bash(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", *map(str, words)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", sorted(INFRA.rglob("*.sh")), ids=lambda path: path.name)
def test_it_parses(script):
    assert bash("-n", script).stderr == ""


def test_a_changed_missing_or_extra_file_is_noticed(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    (house / "a b-1.whl").write_bytes(b"wheel")
    (house / "constraints.txt").write_text("a==1\n")
    assert bash(WHEELHOUSE, "verify", house).returncode == 20
    assert bash(WHEELHOUSE, "seal", house).returncode == 0
    assert bash(WHEELHOUSE, "verify", house).stdout == "verified 2 files\n"
    (house / "extra.whl").touch()
    assert "extra.whl" in bash(WHEELHOUSE, "verify", house).stderr
    (house / "extra.whl").unlink()
    (house / "a b-1.whl").write_bytes(b"wheeL")
    assert bash(WHEELHOUSE, "verify", house).returncode == 20
    (house / "a b-1.whl").unlink()
    assert bash(WHEELHOUSE, "install", house, tmp_path / "venv").returncode == 20
    assert not (tmp_path / "venv").exists()


def test_the_gpu_pins_win_and_each_name_stands_once(tmp_path):
    out = tmp_path / "constraints.txt"
    assert bash(WHEELHOUSE, "constraints", out).returncode == 0
    pins, ours = parse_lock(out.read_text()), parse_lock((INFRA.parent / "constraints.txt").read_text())
    assert len(pins) == len([line for line in out.read_text().splitlines() if line])
    assert str(pins["torch"].specifier) == "==2.11.0"
    assert "torchcodec" not in pins
    assert {"mamba-ssm", "causal-conv1d", "triton"} <= pins.keys()
    for name in ours.keys() - {"torch", "torchcodec", "triton"}:
        assert pins[name] == ours[name]


def test_nvcc_gets_the_named_architectures_only():
    script = INFRA / "images" / "nvcc-architectures.sh"
    given = ["-O3", "-gencode", "arch=compute_75,code=sm_75", "--generate-code=arch=compute_80,code=sm_80", "x.cu"]
    found = bash(script, *given, NVCC="echo", TORCH_CUDA_ARCH_LIST="9.0;10.0+PTX").stdout.split()
    assert [word for word in found if word.startswith("arch=")] == [
        "arch=compute_90,code=sm_90", "arch=compute_100,code=sm_100", "arch=compute_100,code=compute_100",
    ]  # fmt: skip
    assert found[-2:] == ["-O3", "x.cu"]
    emptied = bash(script, "x.cu", NVCC="echo", TORCH_CUDA_ARCH_LIST="", NVCC_ARCHITECTURES="9.0").stdout
    assert emptied == "-gencode arch=compute_90,code=sm_90 x.cu\n"
    assert bash(script, NVCC="echo", TORCH_CUDA_ARCH_LIST="Hopper").returncode == 10
    assert bash(script, NVCC="echo", TORCH_CUDA_ARCH_LIST="").returncode != 0


def test_the_documented_profile_is_valid():
    text = (INFRA / "slurm" / "profile.yaml").read_text()
    profile = parse_yaml(text, "profile.yaml")["profiles"]["cluster"]
    slurm = parse(SlurmConfig, profile["slurm"], "profile.yaml")
    assert slurm.nodes(profile["stages"]["train"]["ranks"]) == (4, 8)
    curate = slurm.of_stage("curate")
    assert (curate.partition, curate.gres, curate.account) == ("cpu", None, "video")
