"""Taking a clip down in a home that really ran: new versions, nothing else touched, refusal, receipt, resumption."""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from takedown_home import SHARD_SAMPLES, TakedownHome

from dataprep.quarantine import read_quarantine
from dataprep.versions.config import Remove, Subset, VersionConfig
from m4v.core.errors import InputError
from pipelines.access import AccessDenied, Actor, Role
from pipelines.cli.main import main
from pipelines.dataset_versions import version_run
from pipelines.takedown.policy import Delete
from pipelines.takedown.verify import Check, verify_receipt


@pytest.fixture(scope="module")
def taken(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A home after `apply --delete keep` of one clip, and what it held before."""
    import shutil

    place = tmp_path_factory.mktemp("taken") / "home"
    shutil.copytree(finished, place, symlinks=True)
    with TakedownHome.open(place) as home:
        dataset, clips = home.only("dataset"), home.only("clips")
        row = next(r for r in home.rows(dataset) if r["source"] == "street")
        before = {"dataset": dataset, "clips": clips, "clip": row["clip_id"], "samples": home.samples(dataset)}
        done = home.apply(row["clip_id"][:10], delete=Delete.KEEP)
        yield {"home": home, "done": done, **before}


def test_the_new_version_is_without_the_clip_and_else_the_same(taken: dict[str, Any]) -> None:
    home, dataset = taken["home"], taken["dataset"]
    made = home.only("dataset")
    gone = {r["sample_id"] for r in home.rows(dataset) if r["clip_id"] == taken["clip"]}  # brute force
    assert gone
    assert taken["clip"] not in {r["clip_id"] for r in home.rows(made)}
    after = home.samples(made)
    assert after == {sample: data for sample, data in taken["samples"].items() if sample not in gone}
    # Only the shards that held it were rewritten: the others are the same files.
    touched = {r["shard"] for r in home.rows(dataset) if r["clip_id"] == taken["clip"]}
    old, new = home.shards(dataset), home.shards(made)
    assert len(old) > len(touched) + 1
    linked = {path.stat().st_ino for path in new.values()}
    assert {name for name, path in old.items() if path.stat().st_ino not in linked} == touched
    facts = next(r for r in taken["done"].receipt["replaced"] if r["artifact_id"] == dataset)
    assert facts["shards_rewritten"] == sorted(touched)
    assert facts["shards_shared"] == len(old) - len(touched)
    assert facts["samples_removed"] == len(gone)
    assert max(sum(r["shard"] == name for r in home.rows(made)) for name in new) <= SHARD_SAMPLES


def test_the_new_clip_table_says_where_the_clip_went(taken: dict[str, Any]) -> None:
    home = taken["home"]
    old, new = home.artifact(taken["clips"], "clips"), home.artifact(home.only("clips"), "clips")
    before = {r["clip_id"]: r for r in pq.read_table(old.path("clips.parquet")).to_pylist()}
    after = {r["clip_id"]: r for r in pq.read_table(new.path("clips.parquet")).to_pylist()}
    lost = before.pop(taken["clip"])
    assert after == before
    assert pq.read_table(new.path("hashes.parquet"))["clip_id"].to_pylist() == list(after)
    (row,) = [r for r in read_quarantine(new.path("quarantine.parquet")) if r.reason == "takedown"]
    assert (row.source, row.path, row.detail) == (lost["source"], lost["path"], f"takedown {case_of(taken)}")
    assert set(old.names("previews/")) - set(new.names("previews/")) == {f"previews/{taken['clip']}.jpg"}
    assert new.manifest.summary["kept"] == len([r for r in after.values() if r["kept"]])
    assert json.loads(new.path("funnel.json").read_text())[-1]["dropped_by_reason"] == {"takedown": 1}


def case_of(taken: dict[str, Any]) -> str:
    return str(taken["done"].case.takedown_id)


def test_withdrawn_versions_are_refused_and_say_why(taken: dict[str, Any]) -> None:
    home, case = taken["home"], case_of(taken)
    config = VersionConfig(operation=Subset(clips=(home.rows(taken["dataset"])[0]["clip_id"],)))
    run = version_run(home.workspace, home.ledger, home.launcher, [taken["dataset"]], config)
    outcomes = run.run_all()
    pinned = outcomes[f"dataset.{taken['dataset'][:12]}"]
    assert not pinned.status.has_outputs
    assert f"withdrawn by takedown {case}; m4v takedown show {case}" in str(pinned.error)
    plan = home.session().plan("encode")
    steps = {step.node_id: step for step in plan.steps}
    assert {name: str(s.status) for name, s in steps.items()} == {
        "source.shapes": "hit", "source.street": "hit", "curate": "run", "encode": "blocked-on",
    }  # fmt: skip
    assert steps["curate"].reason == "the block list of takedowns changed (m4v takedown list)"


def test_the_receipt_verifies(taken: dict[str, Any]) -> None:
    home = taken["home"]
    assert failing(home, taken["done"].receipt) == []
    assert home.ledger.verify_chain().ok
    readable = Path(taken["done"].receipt_uri).with_suffix(".md").read_text()
    assert taken["dataset"] in readable
    assert "the owner asked" in readable


def failing(home: TakedownHome, receipt: dict[str, Any]) -> list[Check]:
    return [check for check in verify_receipt(home.ledger, home.workspace, receipt) if not check.ok]


@pytest.mark.parametrize(
    "path",
    [
        ("clips", 0, "clip_id"), ("takedown", "reason"), ("chain", "hash"), ("withdrawn", 0, "artifact_id"),
        ("replaced", 1, "samples_digest"), ("replaced", 1, "successor"), ("digest",),
    ],
)  # fmt: skip
def test_a_tampered_receipt_does_not_verify(taken: dict[str, Any], path: tuple[Any, ...]) -> None:
    receipt = copy.deepcopy(dict(taken["done"].receipt))
    place = receipt
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = "0" * len(str(place[path[-1]]))
    assert failing(taken["home"], receipt)


def test_a_receipt_with_a_digest_made_to_fit_was_never_issued(taken: dict[str, Any]) -> None:
    from m4v.core.canonical import digest_json

    receipt = copy.deepcopy(dict(taken["done"].receipt))
    del receipt["digest"]
    receipt["clips"] = []
    receipt["digest"] = digest_json(receipt)
    claims = [check.claim for check in failing(taken["home"], receipt)]
    assert "the ledger issued this receipt" in claims


def test_the_command_line_tells_and_verifies(
    taken: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, case = str(taken["home"].workspace.home), case_of(taken)

    def m4v(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", "--home", home, "takedown", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    code, out = m4v("impact", taken["clip"][:12])
    assert code == 0
    assert f"{taken['dataset']}\tdataset\tholds 1\t-\t{case}" in out
    assert "m4v takedown apply" not in out  # it is down already
    assert m4v("list")[1].splitlines()[1].startswith(f"{case}\tada\t")
    assert json.loads(m4v("list", "--json")[1])[0]["withdrawn"] == 3 - 1  # no report in this home
    assert taken["dataset"] in m4v("show", case[:8])[1]
    shown = json.loads(m4v("show", case, "--json")[1])
    assert [c["clip_id"] for c in shown["blocked_clips"]] == [taken["clip"]]
    assert m4v("receipt", case, "--markdown")[1].startswith(f"# Takedown {case}")
    assert m4v("plan", case)[1].startswith("no checkpoint that the ledger can make again saw the clips")
    path = tmp_path / "receipt.json"
    path.write_text(m4v("receipt", case)[1])
    code, out = m4v("verify", str(path))
    assert (code, "FAILS" in out) == (0, False)
    path.write_text(path.read_text().replace("the owner asked", "nobody asked"))
    code, out = m4v("verify", str(path))
    assert (code, "FAILS\tthe receipt's digest is that of its content" in out) == (20, True)
    for wrong in ("[]", "{}", "no JSON"):
        path.write_text(wrong)
        assert m4v("verify", str(path))[0] == 10


def test_done_again_says_so(taken: dict[str, Any]) -> None:
    home = taken["home"]
    events = home.ledger.verify_chain().events
    again = home.apply(taken["clip"][:10], delete=Delete.NOW)  # the policy is that of the case
    assert not again.did_something
    assert again.receipt == taken["done"].receipt
    assert home.ledger.verify_chain().events == events
    assert home.ledger.artifact(taken["dataset"], "dataset").deletion is None


@pytest.mark.deep
def test_a_second_case_works_on_what_the_first_left(taken: dict[str, Any]) -> None:
    home = taken["home"]
    made = home.only("dataset")
    other = next(r for r in home.rows(made) if r["source"] == "shapes")["clip_id"]
    done = home.apply(other, delete=Delete.KEEP)
    replaced = {r["artifact_id"] for r in done.receipt["replaced"]}
    assert made in replaced
    assert taken["dataset"] not in replaced  # withdrawn before
    left = {r["clip_id"] for r in home.rows(home.only("dataset"))}
    assert not left & {taken["clip"], other}
    assert failing(home, taken["done"].receipt) == []


def test_bytes_go_with_their_items_and_shared_ones_stay(home: TakedownHome) -> None:
    dataset, clips = home.only("dataset"), home.only("clips")
    old = {name: path.stat().st_ino for name, path in home.shards(dataset).items()}
    clip = next(r for r in home.rows(dataset) if r["source"] == "shapes" and r["media"] == "video")
    items = home.workspace.home / "store" / "items"
    before = {p for p in items.rglob("*") if p.is_file()}
    done = home.apply(f"{clip['source']}/{clip['source_id']}")
    for artifact_id, kind in ((dataset, "dataset"), (clips, "clips")):
        row = home.ledger.artifact(artifact_id, kind)  # the row stays
        assert row.deletion == "done"
        assert not Path(row.uri).exists()
    assert {p.stat().st_ino for p in home.shards(home.only("dataset")).values()} & set(old.values())
    gone = {p.relative_to(items).parts[0] for p in before if not p.exists()}
    assert {"latents", "frame-times", "texts", "curate-segment"} <= gone
    assert [p for p in before if not p.exists() and clip["source_digest"] in p.name]
    assert not [p for p in items.rglob(f"*{clip['source_digest']}*") if p.is_file()]
    deleted = {d["item"]: d for d in done.receipt["deleted"]}
    assert deleted[f"dataset {dataset}"]["bytes_freed"] < deleted[f"dataset {dataset}"]["size_bytes"]
    assert failing(home, done.receipt) == []
    # One byte that stays where it was sworn to be gone is seen.
    Path(home.ledger.artifact(clips, "clips").uri).mkdir(parents=True)
    (Path(home.ledger.artifact(clips, "clips").uri) / "clips.parquet").write_text("{}")
    assert [c.claim for c in failing(home, done.receipt)] == [f"bytes of clips {clips[:18]} are gone"]


@pytest.mark.deep
def test_bytes_wait_for_their_grace(home: TakedownHome, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = home.only("dataset")
    clip = home.rows(dataset)[0]["clip_id"]
    first = home.apply(clip, delete=Delete.AFTER_GRACE, grace_days=2.0)
    assert first.receipt["deletion"].startswith("due from 20")
    assert Path(home.ledger.artifact(dataset, "dataset").uri).exists()
    monkeypatch.setattr("pipelines.takedown.policy.utc_now", lambda: first.case.requested_at.replace(year=2100))
    second = home.apply(clip)
    assert second.did_something
    assert second.receipt["deletion"] == "done"
    assert not Path(home.ledger.artifact(dataset, "dataset").uri).exists()
    assert len(home.ledger.takedown_steps(first.case.takedown_id, "receipt")) == 2
    assert failing(home, second.receipt) == []


def test_roles_and_reasons(home: TakedownHome) -> None:
    clip = home.rows(home.only("dataset"))[0]["clip_id"]
    with pytest.raises(AccessDenied, match="to take clips down takes the role approver"):
        home.apply(clip, actor=Actor("eve", Role.OPERATOR))
    with pytest.raises(AccessDenied, match="to delete bytes"):
        home.apply(clip, actor=Actor("bob", Role.APPROVER))
    with pytest.raises(InputError, match="no clip of this source is indexed"):
        home.apply("nowhere")
    assert home.ledger.takedowns() == []


@pytest.mark.deep
def test_nothing_left_is_told(home: TakedownHome) -> None:
    done = home.apply("street", "shapes", delete=Delete.KEEP)
    assert {r["successor"] for r in done.receipt["replaced"]} == {None}
    assert all("no " in r["note"] for r in done.receipt["replaced"])
    assert failing(home, done.receipt) == []
    assert Remove(clips=("x",)).overlapping is False
