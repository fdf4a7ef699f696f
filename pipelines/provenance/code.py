"""The code's state when a run starts: commit, uncommitted changes and their diff, or the installed package's version.

Only our packages and the files that pin them count: what else lies in a checkout neither runs nor may leave it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from m4v.core.canonical import digest_bytes
from m4v.core.config import FrozenModel
from m4v.core.errors import InfrastructureError
from pipelines.environment import DISTRIBUTION, host_facts
from pipelines.keys import CODE_ROOT, OUR_PACKAGES
from pipelines.provenance.blobs import BlobStore

MAX_DIFF_BYTES = 4 << 20
MAX_FILES = 500  # changed files named in a record
TIMEOUT_S = 20
PINS = ("pyproject.toml", "constraints*.txt")


class DiffRef(FrozenModel):
    """The uncommitted changes as a patch on `commit`. `kept` false: too large to store, only its digest is known."""

    sha256: str
    size_bytes: int
    kept: bool


class CodeState(FrozenModel):
    """`commit` is None where the code does not stand in a git checkout; `note` then says why.

    `dirty`: tracked or new files of ours differ from the commit; `changed` names them.
    """

    version: str | None = None
    commit: str | None = None
    branch: str | None = None
    dirty: bool = False
    changed: tuple[str, ...] = ()
    diff: DiffRef | None = None
    note: str = ""


def code_state(blobs: BlobStore | None = None, root: Path = CODE_ROOT) -> CodeState:
    """The state of the code below `root`; the diff goes to `blobs`. A git that is missing or refuses is a note in the
    record, never an error: a run must not end for want of it."""
    installed = _version()
    try:
        if _git(root, "ls-files", "pipelines/__init__.py").strip() == "":
            return CodeState(version=installed, note="the code is not tracked by git")
        commit = _git(root, "rev-parse", "HEAD").strip()
        branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()
        diff, changed = _uncommitted(root)
    except _GitError as error:
        return CodeState(version=installed, note=str(error))
    state = CodeState(version=installed, commit=commit, branch=branch, dirty=bool(diff), changed=changed)
    return state.model_copy(update={"diff": _keep(diff, blobs)}) if diff else state


class _GitError(Exception):
    pass


def _keep(diff: bytes, blobs: BlobStore | None) -> DiffRef:
    kept = False
    if blobs is not None and len(diff) <= MAX_DIFF_BYTES:
        try:
            blobs.put(diff)
            kept = True
        except InfrastructureError:
            kept = False  # the record says that only the digest is known
    return DiffRef(sha256=digest_bytes(diff), size_bytes=len(diff), kept=kept)


def _uncommitted(root: Path) -> tuple[bytes, tuple[str, ...]]:
    """A patch of everything of ours that differs from HEAD, new files included, and the names of the files."""
    paths = ["--", *(f":(top){name}" for name in _tracked_places(root))]
    with tempfile.TemporaryDirectory(prefix="m4v-index-") as folder:
        # New files enter the diff through an index of our own: the user's is not touched.
        index = Path(folder) / "index"
        own = Path(_git(root, "rev-parse", "--path-format=absolute", "--git-path", "index").strip())
        if own.is_file():
            shutil.copy2(own, index)  # with its time: git reads files again that changed within the index's second
        environment = {"GIT_INDEX_FILE": str(index)}
        _git(root, "add", "--intent-to-add", *paths, environment=environment)
        diff = _run(root, "diff", "--no-ext-diff", "--no-color", "--binary", "HEAD", *paths, environment=environment)
        names = _git(root, "diff", "--name-only", "-z", "HEAD", *paths, environment=environment)
    return diff, tuple(filter(None, names.split("\0")))[:MAX_FILES]


def _tracked_places(root: Path) -> list[str]:
    top = Path(_git(root, "rev-parse", "--show-toplevel").strip())
    below = os.path.relpath(root.resolve(), top.resolve())
    prefix = "" if below == "." else f"{below}/"
    pins = [path.name for pattern in PINS for path in sorted(root.glob(pattern))]
    return [prefix + name for name in (*sorted(p for p in OUR_PACKAGES if (root / p).is_dir()), *pins)]


def _git(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    return _run(root, *arguments, environment=environment).decode(errors="replace")


def _run(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> bytes:
    settings = {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **(environment or {})}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, timeout=TIMEOUT_S, check=False, env={**os.environ, **settings},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _GitError(f"git cannot be asked: {type(error).__name__}") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitError(f"git: {lines[0] if lines else f'code {done.returncode}'}")
    return done.stdout


def _version() -> str | None:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def start_environment(blobs: BlobStore) -> dict[str, object]:
    """Code and machine at the start of a pipeline run, as its first event holds them."""
    return {"code": code_state(blobs).canonical(), "python": platform.python_version(), "host": host_facts()}
