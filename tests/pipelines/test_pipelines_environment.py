"""Lock files against installed packages, the numerics record, the workspace's places."""

import subprocess
import sys

import pytest

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources
from pipelines import environment
from pipelines.environment import (
    Target,
    check_numerics,
    environment_facts,
    first_difference,
    installed_versions,
    local_target,
    numerics_record,
    parse_lock,
)
from pipelines.workspace import Workspace


class Config(FrozenModel):
    dtype: str = "bfloat16"
    deterministic: bool = False


class Stage(FrozenModel):
    first: Config
    others: tuple[Config, ...]


ANY = Target(architecture="x")


def test_lock_files_of_pip_parse():
    text = """
    # comment
    --index-url https://example.org/simple
    Foo_Bar==1.2  # why
    baz[extra]==2.0 ; python_version >= "3"
    old==1.0 ; python_version < "3"
    hashed==3.0 \\
        --hash=sha256:00
    """
    pins = parse_lock("\n".join(line.strip() for line in text.splitlines()))
    assert {n: str(p.specifier) for n, p in pins.items()} == {"foo-bar": "==1.2", "baz": "==2.0", "hashed": "==3.0"}
    with pytest.raises(ConfigError, match="does not parse"):
        parse_lock("not a requirement at all ===")


@pytest.mark.parametrize(
    ("lock", "installed", "difference"),
    [
        ("a==1\nb==2", {"a": "1", "b": "2"}, None),
        ("b==2\na==1", {"a": "9", "b": "9"}, "a 9 is installed, the lock file has ==1"),
        ("a==1", {}, None),
        ("torch==2.13.0", {"torch": "2.13.0+cpu"}, None),
        ("torch==2.13.0+cpu", {"torch": "2.13.0"}, "torch 2.13.0 is installed, the lock file has ==2.13.0+cpu"),
        ("a==1.0rc1", {"a": "1.0rc1"}, None),
    ],
)
def test_first_difference(lock, installed, difference):
    assert first_difference(lock, installed) == difference


def test_installed_versions_agree_with_the_metadata():
    from importlib.metadata import version

    installed = installed_versions()
    for name in ("pydantic", "numpy", "torch", "opencv-python-headless"):
        assert installed[name] == version(name)


def test_numerics_record_of_cpu_and_gpu():
    resources = Resources(ranks=2, threads=4, workers=8)
    cpu = numerics_record(Config(), resources, Target(device="cpu", architecture="x86_64-avx2"))
    assert (cpu.world_size, cpu.threads, cpu.dtype, cpu.deterministic) == (2, 4, "bfloat16", False)
    gpu = numerics_record(Config(), resources, Target(device="cuda", architecture="sm_90", kernels="mamba-ssm 2.3"))
    assert (gpu.threads, gpu.kernels) == (0, "mamba-ssm 2.3")
    plain = numerics_record(FrozenModel(), resources, Target(architecture="x"))
    assert (plain.dtype, plain.deterministic) == ("float32", True)
    nested = numerics_record(
        Stage(first=Config(), others=(Config(dtype="float32", deterministic=True),)), resources, ANY
    )
    assert (nested.dtype, nested.deterministic) == ("bfloat16, float32", False)


@pytest.mark.parametrize(("device", "deterministic"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_torch_is_deterministic_where_the_record_promises_it(device: str, deterministic: bool) -> None:
    code = (
        "import os, sys; from pipelines.stage_process import keep_promise;"
        f"keep_promise({{'device': '{device}', 'deterministic': {deterministic}}});"
        "on = 'torch' in sys.modules and sys.modules['torch'].are_deterministic_algorithms_enabled();"
        "print(on, os.environ.get('CUBLAS_WORKSPACE_CONFIG'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == ("True :4096:8" if device == "cuda" and deterministic else "False None")


def test_this_machine_keeps_what_its_target_promises():
    resources = Resources(ranks=1, threads=3, workers=1)
    record = numerics_record(Config(), resources, local_target("cpu")).canonical()
    assert check_numerics(record, resources, 1) == record
    with pytest.raises(ConfigError, match="world_size differs"):
        check_numerics(record, resources, 2)


def test_a_device_that_is_not_here(monkeypatch):
    environment.architecture.cache_clear()
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match="no CUDA device"):
        local_target("cuda")
    with pytest.raises(ConfigError, match="unknown device"):
        local_target("abacus")


def test_cuda_architecture_is_read_from_the_driver_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '9.0\\n9.0\\n'\n")
    tool.chmod(0o755)
    environment.architecture.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert local_target("cuda").architecture == "sm_90"
    environment.architecture.cache_clear()


def test_environment_facts_name_only_loaded_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", sys)
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    libraries = environment_facts()["libraries"]
    assert "numpy" in libraries
    assert "deepspeed" not in libraries


def test_workspace_places(monkeypatch, tmp_path):
    for name in ("M4V_HOME", "M4V_STORE", "M4V_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    plain = Workspace.open()
    assert plain.home == tmp_path / "m4v-home"
    assert plain.home.is_dir()
    assert plain.store_uri == str(plain.home / "store")
    assert plain.ledger_url == f"sqlite:///{plain.home}/ledger.db"
    assert plain.state_uri("ab") == f"{plain.store_uri}/state/ab"
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "by-variable"))
    assert Workspace.open().home == tmp_path / "by-variable"
    assert Workspace.open(tmp_path / "by-argument").home == tmp_path / "by-argument"
    monkeypatch.setenv("M4V_STORE", "s3://bucket/prefix/")
    monkeypatch.setenv("M4V_LEDGER", "postgresql://db/m4v")
    remote = Workspace.open()
    assert remote.store_uri == "s3://bucket/prefix"
    assert remote.items_uri == "s3://bucket/prefix/items"
    assert remote.ledger_url == "postgresql://db/m4v"
    assert remote.work_root == tmp_path / "by-variable" / "work"


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="home directory cannot be made"):
        Workspace.open(tmp_path / "file" / "home")
