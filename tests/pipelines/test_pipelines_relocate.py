"""A home that was moved: the ledger follows once the bytes verify, piece by piece, and says what is not whole."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "channels"))

from channel_house import House

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.errors import ExitClass, InputError
from m4v.core.storage import Storage
from pipelines.cli.main import main
from pipelines.ledger import Deletion, Ledger
from pipelines.relocate import Outcome, relocate
from pipelines.store import ArtifactStore
from pipelines.workspace import Workspace


@contextmanager
def moved_house(url: str, tmp_path: Path) -> Iterator[House]:
    """Three checkpoints, of which one was deleted, in a home that then was moved from `old` to `new`."""
    with Ledger.open(url) as ledger:
        house = House(ledger, ArtifactStore(str(tmp_path / "old" / "store")), tmp_path / "staging", url)
        made = [house.checkpoint(name) for name in ("one", "two", "gone")]
        ledger.mark([Deletion(made[2].artifact_id, "checkpoint", "")], by="t", policy="t")
        Storage(made[2].uri).delete()
        ledger.deleted([(made[2].artifact_id, "checkpoint")])
        (tmp_path / "old").rename(tmp_path / "new")
        yield house


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[House]:
    with moved_house(f"sqlite:///{tmp_path}/ledger.db", tmp_path) as house:
        yield house


def places(house: House) -> set[str]:
    return {row.uri.partition("/store/")[0].rpartition("/")[2] for row in house.ledger.artifacts(limit=None)}


def test_locations_follow_as_events(moved: House, tmp_path: Path) -> None:
    follow(moved, tmp_path)


def test_also_in_postgresql(postgres_ledger: str, tmp_path: Path) -> None:
    with moved_house(postgres_ledger, tmp_path) as house:
        follow(house, tmp_path)


def follow(moved: House, tmp_path: Path) -> None:
    found = list(relocate(moved.ledger, f"{tmp_path}/old/", f"{tmp_path}/new", by="ada"))
    assert {one.outcome for one in found} == {Outcome.MOVED}
    assert len(found) == 3
    assert places(moved) == {"new"}
    for row in moved.ledger.artifacts(limit=None):
        if row.deletion is None:
            verify(Storage(row.uri), row.artifact_id)
        (event,) = [e for e in moved.ledger.events(subject=row.artifact_id) if e.kind == "artifact.located"]
        assert (event.payload["by"], event.payload["from"]) == ("ada", row.uri.replace("/new/", "/old/"))
    assert list(relocate(moved.ledger, f"{tmp_path}/old", f"{tmp_path}/new", by="ada")) == [], "done already"
    report = moved.ledger.verify_chain()
    assert (report.ok, report.stale) == (True, ())
    assert moved.ledger.rebuild() == 0


def test_what_is_not_whole_keeps_its_place_and_follows_later(moved: House, tmp_path: Path) -> None:
    one = next(a for a in moved.ledger.artifacts(kind="checkpoint") if a.deletion is None)
    path = Path(one.uri.replace("/old/", "/new/")) / "data"
    data = path.read_bytes()
    path.write_bytes(data[::-1] if data[::-1] != data else b"x" * len(data))
    assert sorted(str(r.outcome) for r in relocate(moved.ledger, f"{tmp_path}/old", f"{tmp_path}/new", by="ada")) == [
        "damaged", "moved", "moved",
    ]  # fmt: skip
    assert places(moved) == {"old", "new"}
    assert moved.ledger.artifact(one.artifact_id).uri == one.uri
    path.write_bytes(data)
    (last,) = relocate(moved.ledger, f"{tmp_path}/old", f"{tmp_path}/new", by="ada")
    assert (last.outcome, last.artifact.artifact_id) == (Outcome.MOVED, one.artifact_id)


def test_bytes_that_the_ledger_says_are_gone_are_not_let_in_again(moved: House, tmp_path: Path) -> None:
    gone = next(a for a in moved.ledger.artifacts(kind="checkpoint") if a.deletion == "done")
    shutil.copytree(tmp_path / "new" / "store" / "artifacts", tmp_path / "aside")
    back = Path(gone.uri.replace("/old/", "/new/"))
    back.mkdir(parents=True)
    (back / "data").write_text("a copy that somebody kept")
    refused = [r for r in relocate(moved.ledger, f"{tmp_path}/old", f"{tmp_path}/new", by="t") if r.detail]
    assert [(r.artifact.artifact_id, r.outcome) for r in refused] == [(gone.artifact_id, Outcome.DAMAGED)]
    assert "its bytes were deleted, but" in refused[0].detail


def test_nothing_there_and_places_within_each_other_are_refused(moved: House, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no artifact there"):
        list(relocate(moved.ledger, f"{tmp_path}/ol", f"{tmp_path}/ne", by="t"))
    with pytest.raises(InputError, match="must not lie in each other"):
        list(relocate(moved.ledger, f"{tmp_path}/old", f"{tmp_path}/old/store", by="t"))
    assert places(moved) == {"old"}


def test_the_command_tells_and_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "new"
    monkeypatch.setenv("M4V_ACTOR", "ada")

    def m4v(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", "--home", str(home), "artifacts", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    old = tmp_path / "old"
    with Ledger.open(f"sqlite:///{old / 'ledger.db'}") as ledger:
        house = House(ledger, ArtifactStore(str(old / "store")), tmp_path / "staging")
        made = [house.publish(ArtifactKind.WEIGHTS, name) for name in ("one", "two")]
        for record in made:
            ledger.import_artifact(record)
    old.rename(home)
    assert m4v("verify")[0] == ExitClass.DATA_INTEGRITY, "where it lay is nothing now"
    damaged = home / "store" / made[0].uri.partition("/store/")[2] / "more"
    damaged.rename(damaged.with_name("lost"))
    code, out, err = m4v("relocate", str(old), str(home))
    assert code == ExitClass.DATA_INTEGRITY
    assert "1 of 2 locations rewritten" in out
    assert "1 of 2 artifacts are not whole at the new place and keep their old location" in err
    damaged.with_name("lost").rename(damaged)
    code, out, _ = m4v("relocate", str(old), str(home), "--json")
    assert (code, [r["outcome"] for r in json.loads(out)]) == (0, ["moved"])
    assert (
        m4v("relocate", str(old), str(home))[1]
        == "artifact\tkind\tsize\toutcome\twhy\nevery artifact lies there already\n"
    )
    assert m4v("verify")[0] == 0


def test_the_log_of_an_attempt_is_found_in_the_moved_home(tmp_path: Path) -> None:
    old, key = Workspace.open(tmp_path / "old"), "k" * 64
    log = old.stage_work(key) / "attempt1" / "stage.log"
    log.parent.mkdir(parents=True)
    log.write_text("it ran")
    assert old.attempt_file(str(log), key, "attempt1") == log
    old.home.rename(tmp_path / "new")
    assert Workspace.open(tmp_path / "new").attempt_file(str(log), key, "attempt1").read_text() == "it ran"
    nowhere = Workspace.open(tmp_path / "new").attempt_file(str(log), key, "attempt2")
    assert nowhere == log, "the message names where it was written"
