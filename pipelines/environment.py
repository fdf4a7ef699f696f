"""The environment a stage runs in: lock file against installed packages, the numerics record, host facts.

Nothing here imports torch unless the stage has done so already.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources
from m4v.kernels import kernel_summary

DISTRIBUTION = "m4v-pipeline"
LIBRARIES = ("torch", "deepspeed", "numpy", "ray", "transformers", "decord", "av", "onnxruntime", "mamba_ssm")


class Target(FrozenModel):
    """Where a launcher runs a stage: its device, architecture, kernels and the lock file of its packages."""

    device: str = "cpu"
    architecture: str
    kernels: str = "torch"
    lock_file: str | None = None


class Numerics(FrozenModel):
    """What may change the bytes of a numeric stage besides its inputs (DESIGN, Identity).

    `threads` is set on the CPU only: torch splits full reductions by thread there, so that a mean differs
    in its last bits between one thread and two; on a GPU it is 0. `dtype`: every one that the config names, or
    float32. `deterministic`: on a GPU the stage process turns torch's deterministic mode on.
    """

    device: str
    architecture: str
    world_size: int
    threads: int
    dtype: str
    deterministic: bool
    kernels: str


def numerics_record(config: FrozenModel, resources: Resources, target: Target) -> Numerics:
    """The promise of a node's key; fields `dtype` and `deterministic` in the config, at any depth, set the policy."""
    policy = config.canonical()
    return Numerics(
        device=target.device,
        architecture=target.architecture,
        world_size=resources.ranks,
        threads=resources.threads if target.device == "cpu" else 0,
        dtype=", ".join(sorted({str(value) for value in _named(policy, "dtype")})) or "float32",
        deterministic=all(_named(policy, "deterministic")),
        kernels=target.kernels,
    )


def _named(value: object, field: str) -> list[object]:
    """Values of every field of this name in nested JSON."""
    if isinstance(value, dict):
        own = [value[field]] if field in value else []
        return own + [found for part in value.values() for found in _named(part, field)]
    if isinstance(value, list | tuple):
        return [found for part in value for found in _named(part, field)]
    return []


def local_target(device: str, lock_file: str | None = None) -> Target:
    """This machine as a target."""
    return Target(device=device, architecture=architecture(device), kernels=kernel_set(device), lock_file=lock_file)


def check_numerics(requested: Mapping[str, object], resources: Resources, world_size: int) -> dict[str, object]:
    """The record as seen here; raises ConfigError naming the first field that differs from the request."""
    seen: dict[str, object] = {
        "device": resources.device,
        "architecture": architecture(resources.device),
        "world_size": world_size,
        "threads": resources.threads if resources.device == "cpu" else 0,
        "kernels": kernel_set(resources.device),
    }
    for field, value in seen.items():
        if field in requested and requested[field] != value:
            raise ConfigError(
                f"this machine's {field} differs from the stage key's ({requested[field]!r})",
                value=value,
                where="numerics record",
                next_step="plan again for the machine that runs the stage",
            )
    return {**requested, **seen}


@lru_cache
def architecture(device: str) -> str:
    """`x86_64-avx512`, `aarch64`, `sm_90`, …: what decides which kernels run on a device.

    Raises ConfigError when the device is not on this machine.
    """
    if device == "cpu":
        level = os.environ.get("ATEN_CPU_CAPABILITY") or _vector_level()
        return f"{platform.machine()}-{level}" if level else platform.machine()
    if device == "cuda":
        return _cuda_architecture()
    raise ConfigError("unknown device", value=device, next_step="use cpu or cuda")


def _vector_level() -> str:
    """The vector instructions torch picks its CPU kernels by."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        ).split()
    except (OSError, StopIteration):
        return ""
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= set(flags):
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= set(flags) else "default"


def _cuda_architecture() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        raise ConfigError(
            "no CUDA device on this machine", value="cuda",
            next_step="plan and run where the GPUs are, or set device: cpu in the profile",
        )  # fmt: skip
    query = [command, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        step = "look after the driver, or set device: cpu in the profile"
        raise ConfigError("nvidia-smi does not answer", value="30 s", where="cuda", next_step=step) from None
    capabilities = sorted({line.strip().replace(".", "") for line in answer.stdout.splitlines() if line.strip()})
    if answer.returncode != 0 or not capabilities:
        raise ConfigError(
            "nvidia-smi names no device", value=answer.stderr.strip() or answer.stdout.strip(), where="cuda",
            next_step="plan and run where the GPUs are, or set device: cpu in the profile",
        )  # fmt: skip
    return "+".join(f"sm_{c}" for c in capabilities)


def kernel_set(device: str) -> str:
    """The model's kernels on a device in one line, e.g. `mamba-ssm 2.3.2, flex 2.11.0`; plain `torch` on the CPU."""
    return kernel_summary(device)


def file_digest(path: Path) -> str:
    """sha256 of a lock file; raises ConfigError when it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise ConfigError(
            "lock file does not exist", value=str(path), where="launcher profile",
            next_step="lock the packages into this file, or name another in the profile's lock_file",
        ) from None  # fmt: skip


def check_lock(lock_file: Path, digest: str | None = None) -> None:
    """Raises ConfigError naming the first package that differs from the lock file, or the file itself if it
    changed since planning. Locked packages that are not installed are left alone: a target needs only what
    its stages import."""
    if digest is not None and file_digest(lock_file) != digest:
        raise ConfigError("lock file changed since the plan", value=str(lock_file), next_step="plan again")
    difference = first_difference(lock_file.read_text(), installed_versions())
    if difference is not None:
        raise ConfigError(
            difference, where=lock_file.name, next_step=f"pip install -c {lock_file.name} {DISTRIBUTION}, or lock anew"
        )


def first_difference(lock: str, installed: Mapping[str, str]) -> str | None:
    """First locked package, by name, whose installed version the pin excludes; None when all agree."""
    for name, pin in sorted(parse_lock(lock).items()):
        version = installed.get(name)
        if version is not None and not pin.specifier.contains(version, prereleases=True):
            return f"{name} {version} is installed, the lock file has {pin.specifier}"
    return None


def parse_lock(text: str) -> dict[str, Requirement]:
    """Pins of a requirements or constraints file that apply to this interpreter, by canonical name."""
    pins: dict[str, Requirement] = {}
    environment = {k: str(v) for k, v in default_environment().items()}
    for line in text.replace("\\\n", " ").splitlines():
        entry = line.split(" #")[0].split(" --hash")[0].strip()
        if not entry or entry.startswith(("#", "-")):
            continue
        try:
            pin = Requirement(entry)
        except InvalidRequirement as error:
            raise ConfigError(f"lock file line does not parse: {error}", value=entry, where="lock file") from None
        if pin.marker is None or pin.marker.evaluate(environment):
            pins[canonicalize_name(pin.name)] = pin
    return pins


@lru_cache
def installed_versions() -> dict[str, str]:
    """Version of every installed distribution, read from directory names: a hundred times quicker than
    parsing each METADATA. The first on the path wins, as on import."""
    found: dict[str, str] = {}
    for entry in sys.path:
        base = Path(entry or ".")
        for info in sorted(base.glob("*.dist-info")) if base.is_dir() else ():
            name, _, version = info.name.removesuffix(".dist-info").partition("-")
            found.setdefault(canonicalize_name(name), version)
    return found


def environment_facts() -> dict[str, object]:
    """For the ledger row of a run, never for an artifact: interpreter, loaded libraries, host."""
    installed = installed_versions()
    loaded = {n: installed.get(canonicalize_name(n), "unknown") for n in LIBRARIES if n in sys.modules}
    return {"python": platform.python_version(), "libraries": loaded, "host": host_facts()}


def host_facts() -> dict[str, object]:
    return {
        "name": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
