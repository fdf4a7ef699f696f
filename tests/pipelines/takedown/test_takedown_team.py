"""A takedown where a team keeps its things: artifacts and items on S3, the ledger on PostgreSQL. Killed again and
again on the way, it ends as on one machine, and the bytes are gone from the bucket."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from takedown_home import SETTINGS, TakedownHome

from m4v.core.artifacts import MANIFEST
from m4v.core.shard_index import MEMBERS
from m4v.core.storage import Storage
from pipelines.takedown.verify import verify_receipt

pytestmark = [pytest.mark.deep, pytest.mark.timeout(3600)]
SCRIPT = Path(__file__).with_name("takedown_home.py")
LEDGER = "pipelines.ledger:Ledger"
# In the order in which they are come by: each start goes a little further than the one before.
PLACES = [
    f"{LEDGER}.open_takedown after 1",
    "pipelines.store:_upload after 1",  # while the first new version travels
    f"{LEDGER}.commit_run after 1",
    "pipelines.takedown.replace:Replacer.replace after 1",
    "pipelines.takedown.apply:delete_items before 1",
    f"{LEDGER}.mark after 1",  # decided to delete, nothing deleted
    "pipelines.takedown.apply:delete_artifact after 1",
    "pipelines.takedown.apply:make_receipt after 1",
]


@contextmanager
def at(store: str, ledger: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4V_STORE", store)
        patch.setenv("M4V_LEDGER", ledger)
        yield


def run_until_encode(home: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(home), "run", "micro"]
    ran = subprocess.run(
        [*command, "--no-prefect", "--until", "encode", *SETTINGS], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def samples(home: TakedownHome, dataset: str) -> dict[str, list[str]]:
    """Digests of every sample's members, as they are read from the shards."""
    artifact, found = home.artifact(dataset, "dataset"), {}
    for row in home.rows(dataset):
        data = artifact.path(f"shards/{row['shard']}").read_bytes()
        parts = [data[row[f"{m}_offset"] :][: row[f"{m}_size"]] for m in MEMBERS]
        found[row["sample_id"]] = [hashlib.sha256(part).hexdigest() for part in parts]
    return found


def objects(uri: str) -> dict[str, str]:
    """Every object below a prefix with its digest, as another client of the bucket sees it; versions included."""
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    return {path: hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(uri.removeprefix("s3://"))}


def files_of(found: dict[str, str], artifact_id: str) -> set[str]:
    return {digest for path, digest in found.items() if f"/{artifact_id}/" in path and not path.endswith(MANIFEST)}


def test_killed_again_and_again_on_s3_and_postgresql(
    finished: Path, tmp_path: Path, s3_root: str, postgres_url: str
) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "local", symlinks=True)
    with TakedownHome.open(tmp_path / "local") as local:
        old, clip = local.only("dataset"), first_street(local)
        receipt = dict(local.apply(clip).receipt)
        expected = next(r["successor"] for r in receipt["replaced"] if r["artifact_id"] == old)
    with at(s3_root, postgres_url):
        run_until_encode(tmp_path / "team")
        with TakedownHome.open(tmp_path / "team", moved=False) as team:
            assert team.only("dataset") == old, "where it is kept changes no byte"
            withdrawn = {"dataset": old, "clips": team.only("clips")}
            kept = {row["sample_id"] for row in team.rows(old) if row["clip_id"] != clip}
            before, bucket = samples(team, old), objects(s3_root)
        assert set(before) > kept
        for place in PLACES:
            killed = subprocess.run(
                [sys.executable, str(SCRIPT), str(tmp_path / "team"), clip, place], stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, env={**os.environ, "M4V_CACHE": str(tmp_path / "cache")},
            )  # fmt: skip
            assert killed.returncode == -signal.SIGKILL, f"{place}\n{killed.stderr[-2000:]}"
        with TakedownHome.open(tmp_path / "team", moved=False) as team:
            done = team.apply(clip)
            check_the_end(team, done.receipt, clip)
            assert done.receipt_uri.startswith(s3_root)
            made = team.only("dataset")
            assert made == expected, "the same version as on one machine"
            assert samples(team, made) == {sample: parts for sample, parts in before.items() if sample in kept}
        after = objects(s3_root)
    for kind, artifact_id in withdrawn.items():
        assert not [path for path in after if artifact_id in path], f"the {kind} is gone, to the last object"
    lost = files_of(bucket, withdrawn["dataset"]) - files_of(after, made)
    assert lost
    assert not lost & set(after.values()), "no copy of a deleted file lies anywhere in the bucket"
    assert before.keys() - kept
    parts = {digest for sample in before.keys() - kept for digest in before[sample]}
    assert not parts & set(after.values()), "nor a member of it as an item"
    others = {path: digest for path, digest in bucket.items() if "/artifacts/source/" in path}
    assert others
    assert others.items() <= after.items(), "what was not taken down is as it was"
    assert not [path for path in after if "/state/" in path]


def first_street(home: TakedownHome) -> str:
    return next(str(r["clip_id"]) for r in home.rows(home.only("dataset")) if r["source"] == "street")


def check_the_end(home: TakedownHome, receipt: Any, clip: str) -> None:
    assert receipt["deletion"] == "done"
    assert [c for c in verify_receipt(home.ledger, home.workspace, receipt) if not c.ok] == []
    assert not home.apply(clip).did_something
    assert len(home.ledger.takedowns()) == 1
    assert home.ledger.verify_chain().ok
    assert home.ledger.marked() == []
    for row in home.ledger.artifacts(limit=None):
        if row.deletion is not None:
            assert list(Storage(row.uri).list()) == []


def test_a_receipt_does_not_verify_while_bytes_are_in_the_bucket(
    tmp_path: Path, s3_root: str, postgres_url: str
) -> None:
    with at(s3_root, postgres_url):
        run_until_encode(tmp_path / "team")
        with TakedownHome.open(tmp_path / "team", moved=False) as team:
            old = team.only("dataset")
            place = Storage(team.ledger.artifact(old, "dataset").uri)
            saved = place.read_bytes("index.parquet")
            receipt = team.apply(first_street(team)).receipt
            assert all(check.ok for check in verify_receipt(team.ledger, team.workspace, receipt))
            place.write_bytes("index.parquet", saved)  # somebody brings a file back
            failed = [c for c in verify_receipt(team.ledger, team.workspace, receipt) if not c.ok]
    assert [c.claim.split()[:3] for c in failed] == [["bytes", "of", "dataset"]]
    assert "index.parquet" in failed[0].detail
