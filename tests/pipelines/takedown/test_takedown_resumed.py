"""A takedown that is killed anywhere is finished by the same command, with the same result."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from takedown_home import TakedownHome

from pipelines.takedown.verify import verify_receipt

pytestmark = pytest.mark.deep
SCRIPT = Path(__file__).with_name("takedown_home.py")
LEDGER, APPLY = "pipelines.ledger:Ledger", "pipelines.takedown.apply"
PLACES = [
    f"{LEDGER}.open_takedown before 1",
    f"{LEDGER}.open_takedown after 1",
    f"{LEDGER}.extend_takedown after 1",
    "pipelines.takedown.replace:Replacer.replace before 1",
    "pipelines.store:ArtifactStore.publish after 1",
    f"{LEDGER}.commit_run before 1",
    f"{LEDGER}.commit_run after 1",
    "pipelines.takedown.replace:Replacer.replace after 1",
    f"{LEDGER}.record_step after 1",
    "pipelines.takedown.replace:Replacer.replace before 2",
    f"{LEDGER}.commit_run after 2",
    f"{APPLY}:delete_items before 1",
    f"{APPLY}:delete_items after 1",
    f"{LEDGER}.mark after 1",
    "pipelines.takedown.delete:erase after 1",
    f"{LEDGER}.deleted after 1",
    f"{LEDGER}.mark after 2",
    f"{APPLY}:retrain_plans after 1",
    f"{APPLY}:make_receipt after 1",
    "m4v.core.storage:Storage.write_bytes after 1",
]


def outcome(home: TakedownHome, receipt: dict[str, Any]) -> dict[str, Any]:
    """What a takedown of the same clip must end in, whatever happened on the way. Item counts are left out (a kill
    between two deletions divides them among two starts), and so are ids of clip tables (they name their case)."""
    replaced = {
        r["artifact_id"]: (r.get("samples_digest") and r["successor"], r.get("samples_digest"), bool(r["successor"]))
        for r in receipt["replaced"]
    }
    deleted = {d["item"]: d["files"] for d in receipt["deleted"] if d["item"].split()[0] in ("clips", "dataset")}
    return {
        "withdrawn": sorted(w["artifact_id"] for w in receipt["withdrawn"]), "replaced": replaced, "deleted": deleted,
        "clips": receipt["clips"], "deletion": receipt["deletion"],
        "left": sorted(
            "clips" if a.kind == "clips" else a.artifact_id
            for a in home.ledger.artifacts(limit=None)
            if a.deletion is None
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    place = tmp_path_factory.mktemp("undisturbed") / "home"
    shutil.copytree(finished, place, symlinks=True)
    with TakedownHome.open(place) as home:
        clip = next(r["clip_id"] for r in home.rows(home.only("dataset")) if r["source"] == "street")
        return clip, outcome(home, dict(home.apply(clip).receipt))


@pytest.mark.parametrize("place", PLACES)
def test_killed_at(place: str, undisturbed: tuple[str, dict[str, Any]], finished: Path, tmp_path: Path) -> None:
    clip, expected = undisturbed
    shutil.copytree(finished, tmp_path / "home", symlinks=True)
    killed = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "home"), clip, place], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    with TakedownHome.open(tmp_path / "home", moved=False) as home:
        done = home.apply(clip)
        assert outcome(home, dict(done.receipt)) == expected
        assert [c for c in verify_receipt(home.ledger, home.workspace, done.receipt) if not c.ok] == []
        assert not home.apply(clip).did_something
        assert len(home.ledger.takedowns()) == 1
        assert home.ledger.verify_chain().ok
