"""`m4v evaluate setup`: make one of VBench's environments. Built beside its place, verified, then moved there."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eval.vbench.environment import (
    RECORD,
    SPECS,
    EnvironmentName,
    EnvironmentRecord,
    EnvironmentSpec,
    ask,
    missing_dimensions,
    read_record,
    record_json,
)
from m4v.core.canonical import digest_bytes
from m4v.core.errors import ConfigError, InfrastructureError, InputError
from m4v.core.storage import storage_faults, write_atomic

STEP_LIMIT_S = 3 * 3600.0
REACH_LIMIT_S = 60.0
_LOG = "setup.log"
_OFFLINE = (
    "Could not find a version", "No matching distribution", "NewConnectionError", "ConnectionError",
    "Connection refused",
    "Temporary failure in name resolution", "Name or service not known", "Network is unreachable", "Could not resolve",
    "timed out", "ProxyError", "Max retries exceeded",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """`already`: it was there and sound, and nothing was done."""

    folder: Path
    record: EnvironmentRecord
    already: bool

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def set_up(
    name: EnvironmentName,
    folder: Path,
    *,
    python: Path | None = None,
    torch: str | None = None,
    extra: str | None = None,
    say: Say = lambda _: None,
) -> Made:
    """Make the environment `name` at `folder`, unless it is there from the same pins.

    - python: the interpreter it is made from (default: ours); torch: its version (default: that of ours).
    - extra: where the package comes from that no registry has: a wheel, a folder, an address for pip.

    Raises InfrastructureError when packages cannot be fetched, ConfigError when a dimension does not import or the
    interpreter is of a wrong version, InputError for a place that something else has, and for `extra` where nothing is.
    """
    spec = SPECS[name]
    if extra is not None and not any(package == "detectron2" for package, _ in spec.extra):
        raise InputError(
            f"the {name} environment has no detectron2", value=extra, where="--detectron2",
            next_step="leave --detectron2 out",
        )  # fmt: skip
    base = Path(sys.executable) if python is None else python
    folder = folder.expanduser().absolute()
    with storage_faults(str(folder)), _only_one(folder):
        found = _present(spec, folder, torch)
        if found is not None:
            return Made(folder, found, already=True)
        version = _check_python(spec, base)
        _check_reach(spec, extra)
        staging = folder.with_name(f".{folder.name}.staging")
        _build(spec, base, staging, torch or spec.torch or _own_torch(), extra, say)
        say(f"importing every dimension of {name} (Python {version})")
        record = ask(name, staging / "bin" / "python", lock=spec.lock)
        if missing := missing_dimensions(record, _needed(spec)):
            raise ConfigError(
                f"{len(missing)} of {len(_needed(spec))} dimensions do not import in the new environment: "
                + "; ".join(f"{d}: {why}" for d, why in missing.items()),
                where=str(staging), next_step=f"read {staging / _LOG}; run the command again to build it anew",
            )  # fmt: skip
        write_atomic(staging / RECORD, record_json(record))
        _publish(staging, folder)
    return Made(folder, record, already=False)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InfrastructureError("the environment is being set up by another process", value=str(folder)) from None
        yield


def _present(spec: EnvironmentSpec, folder: Path, torch: str | None) -> EnvironmentRecord | None:
    """The record of a sound environment made from the same pins; None when there is none or it is of others. Raises
    InputError for a folder that is none of ours."""
    if not folder.exists():
        return None
    record = read_record(folder)
    if record is None or record.name != spec.name:
        if folder.is_dir() and not any(folder.iterdir()):
            return None
        raise InputError(
            "the place is taken by something that is no environment of this name", value=str(folder),
            next_step="name another with --into, or remove it",
        )  # fmt: skip
    same_torch = torch is None or _plain(record.packages.get("torch", "")) == _plain(torch)
    sound = same_torch and record.lock == digest_bytes(spec.lock) and not missing_dimensions(record, _needed(spec))
    return record if sound and (folder / "bin" / "python").is_file() else None


def _image(spec: EnvironmentSpec) -> str:
    return spec.name if spec.name.startswith("vbench") else f"vbench-{spec.name}"


def _needed(spec: EnvironmentSpec) -> tuple[str, ...]:
    return tuple(d for d in spec.dimensions if d not in spec.elsewhere)


def _plain(version: str) -> str:
    return version.partition("+")[0]


def _own_torch() -> str:
    return _plain(importlib.metadata.version("torch"))


def _check_python(spec: EnvironmentSpec, base: Path) -> str:
    """The version of the interpreter; raises ConfigError for one that the pins are not for."""
    command = [str(base), "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=REACH_LIMIT_S, check=True).stdout.split()
        version = (int(told[0]), int(told[1]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise ConfigError("this is no Python that runs", value=str(base), next_step="name one with --python") from None
    first, last = spec.pythons
    if not first <= version <= last:
        wanted = " or ".join(dict.fromkeys(f"{a}.{b}" for a, b in spec.pythons))
        raise ConfigError(
            f"the {spec.name} environment needs Python {wanted}", value=f"{version[0]}.{version[1]}", where=str(base),
            next_step="name one with --python",
        )  # fmt: skip
    return f"{version[0]}.{version[1]}"


def _check_reach(spec: EnvironmentSpec, given: str | None) -> None:
    """Before gigabytes are installed: what comes from a repository must be reachable."""
    sources = [(package, given or address) for package, address in spec.extra]
    for package, source in [*sources, *((name, f"git+{address}") for name, address, _ in spec.checkouts)]:
        if "==" in source:
            continue
        if not source.startswith("git+"):
            if "://" not in source and not Path(source).exists():
                raise InputError(f"there is no such source of {package}", value=source, where="--detectron2")
            continue
        url, _, _ = source.removeprefix("git+").rpartition("@")
        checkout = any(package == name for name, _, _ in spec.checkouts)
        own = "" if checkout else f", or give a wheel or checkout of that commit: --{package} PATH"
        command = ["git", "ls-remote", "--exit-code", url or source.removeprefix("git+"), "HEAD"]
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        try:
            subprocess.run(command, capture_output=True, env=environment, timeout=REACH_LIMIT_S, check=True)
        except (OSError, subprocess.SubprocessError):
            raise InfrastructureError(
                f"{package} cannot be fetched: it is in no package registry, and its repository is not reached",
                value=source, where=f"environment {spec.name}",
                next_step=f"run this where the repository is reachable{own}; infra/images/{_image(spec)}.Containerfile "
                "builds the same as an image",
            ) from None  # fmt: skip


def _build(spec: EnvironmentSpec, base: Path, staging: Path, torch: str, extra: str | None, say: Say) -> None:
    if staging.exists():
        shutil.rmtree(staging)  # half of an earlier try: pip's cache has what it fetched
    say(f"making {staging}")
    _step([str(base), "-m", "venv", str(staging)], staging, "making the environment")
    lock = staging / "requirements.txt"
    lock.write_bytes(spec.lock)
    python = str(staging / "bin" / "python")
    install = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    say(f"installing torch {torch} and its torchvision")
    tools = [line for line in lock.read_text().splitlines() if line.startswith("setuptools==")]
    _step([*install, *tools, "wheel"], staging, "fetching packages")
    _step([*install, "-c", str(lock), f"torch=={torch}", "torchvision"], staging, "fetching packages")
    say(f"installing {sum('==' in line for line in lock.read_text().splitlines())} pinned packages")
    _step([*install, "--no-deps", "-r", str(lock)], staging, "fetching packages")
    for package, address in spec.extra:
        say(f"building {package}")
        _step([*install, "--no-deps", "--no-build-isolation", extra or address], staging, f"building {package}")
    for name, address, below in spec.checkouts:
        say(f"fetching {name}")
        lay_checkout(staging, name, address, below)


def lay_checkout(environment: Path, name: str, address: str, below: str) -> None:
    """Code of `address` (repository@commit) beside the packages, `below` on their path; moves with the environment."""
    url, _, commit = address.rpartition("@")
    folder = environment / "checkouts" / name
    folder.mkdir(parents=True)
    git = ["git", "-C", str(folder)]
    for command in (["init", "-q"], ["fetch", "-q", "--depth", "1", url, commit], ["checkout", "-q", "FETCH_HEAD"]):
        _step([*git, *command], environment, f"fetching {name}")
    packages = next(environment.glob("lib/python3.*/site-packages"))
    place = Path(*[".."] * 3, "checkouts", name, below)  # as seen from the packages
    (packages / f"{name}-checkout.pth").write_text(f"{place}\n")


def _step(command: list[str], staging: Path, doing: str) -> None:
    """Run one command, its output at the end of the log beside the environment's place."""
    log = staging.with_name(f"{staging.name}.log") if not staging.is_dir() else staging / _LOG
    with log.open("ab") as stream:
        start = stream.tell()
        try:
            code = subprocess.run(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
                                  timeout=STEP_LIMIT_S, check=False).returncode  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InfrastructureError(f"{doing} failed: {error}", value=command[0], where=str(log)) from None
    if code == 0:
        return
    with log.open("rb") as stream:
        stream.seek(start)
        text = stream.read().decode(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()[-1:]
    offline = any(sign in text for sign in _OFFLINE)
    raise InfrastructureError(
        f"{doing} failed{': no package registry is reached, or it lacks a pinned version' if offline else ''}",
        value=lines[0] if lines else f"code {code}", where=str(log),
        next_step="run it where pip reaches a registry (pip config list), or on a machine of that kind and name the "
        "interpreter in evaluation.vbench",
    )  # fmt: skip


def _publish(staging: Path, folder: Path) -> None:
    """Move the new environment to its place; one that was there goes last."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    if old.exists():
        shutil.rmtree(old)
