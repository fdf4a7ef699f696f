"""The code's recorded state: commit, uncommitted changes as a patch that applies, and what is told without git."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from m4v.core.errors import DataIntegrityError, InputError
from pipelines.provenance import BlobStore, code, code_state


def git(root: Path, *arguments: str) -> str:
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    named = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, **settings, **named},
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A repository with one of our packages in it, committed."""
    root = tmp_path / "checkout"
    (root / "pipelines").mkdir(parents=True)
    (root / "pipelines" / "__init__.py").write_text("")
    (root / "pipelines" / "plan.py").write_text("steps = 1\n")
    (root / "constraints.txt").write_text("numpy==2\n")
    (root / "notes.txt").write_text("mine\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(str(tmp_path / "store"))


def test_a_clean_checkout(checkout, blobs):
    state = code_state(blobs, checkout)
    assert state.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert (state.branch, state.dirty, state.diff, state.changed) == ("main", False, None, ())


def test_uncommitted_and_new_files_are_in_the_patch_and_it_applies(checkout, blobs, tmp_path):
    (checkout / "pipelines" / "plan.py").write_text("steps = 2\n")
    (checkout / "pipelines" / "new.py").write_text("fresh = True\n")
    (checkout / "constraints.txt").write_text("numpy==3\n")
    (checkout / "pipelines" / "blob.bin").write_bytes(bytes(range(256)))
    index = (checkout / ".git" / "index").read_bytes()
    state = code_state(blobs, checkout)
    assert state.dirty
    assert state.changed == ("constraints.txt", "pipelines/blob.bin", "pipelines/new.py", "pipelines/plan.py")
    assert (checkout / ".git" / "index").read_bytes() == index, "the user's index was touched"
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    (tmp_path / "patch").write_bytes(blobs.get(state.diff.sha256))
    git(clone, "apply", str(tmp_path / "patch"))
    for name in state.changed:
        assert (clone / name).read_bytes() == (checkout / name).read_bytes()


def test_a_change_of_equal_size_within_the_second_of_the_commit_is_seen(checkout, blobs):
    plan, index = checkout / "pipelines" / "plan.py", checkout / ".git" / "index"
    git(checkout, "config", "core.trustctime", "false")
    hour_ago = time.time() - 3600
    os.utime(plan, (hour_ago, hour_ago))
    git(checkout, "update-index", "--refresh")
    plan.write_text("steps = 2\n")
    os.utime(plan, (hour_ago, hour_ago))
    os.utime(index, (hour_ago, hour_ago))
    assert code_state(blobs, checkout).changed == ("pipelines/plan.py",)


def test_what_is_not_ours_is_neither_dirty_nor_copied(checkout, blobs):
    (checkout / "notes.txt").write_text("password: hunter2\n")
    (checkout / ".env").write_text("TOKEN=1\n")
    assert code_state(blobs, checkout).dirty is False


def test_a_large_diff_is_known_by_digest_only(checkout, blobs, monkeypatch):
    monkeypatch.setattr(code, "MAX_DIFF_BYTES", 10)
    (checkout / "pipelines" / "plan.py").write_text("steps = 2\n")
    diff = code_state(blobs, checkout).diff
    assert (diff.kept, diff.size_bytes > 10) == (False, True)
    with pytest.raises(InputError, match="no such provenance file"):
        blobs.get(diff.sha256)


def test_without_git_the_version_stands(tmp_path, blobs, monkeypatch, checkout):
    plain = tmp_path / "site-packages"
    (plain / "pipelines").mkdir(parents=True)
    assert "git: " in code_state(blobs, plain).note
    inside = checkout / "venv" / "site-packages"
    (inside / "pipelines").mkdir(parents=True)
    (inside / "pipelines" / "__init__.py").write_text("")
    state = code_state(blobs, inside)
    assert (state.commit, state.note) == (None, "the code is not tracked by git")
    monkeypatch.setenv("PATH", str(tmp_path))
    state = code_state(blobs, checkout)
    assert state.commit is None
    assert state.version
    assert "git cannot be asked" in state.note


def test_a_changed_blob_is_noticed(blobs, tmp_path):
    kept = blobs.put(b"a diff")
    assert blobs.put(b"a diff") == kept
    (path,) = (p for p in (tmp_path / "store").rglob(kept.sha256))
    path.chmod(0o644)
    path.write_bytes(b"another")
    with pytest.raises(DataIntegrityError, match="was changed"):
        blobs.get(kept.sha256)
