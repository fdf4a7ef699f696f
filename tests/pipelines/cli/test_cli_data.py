"""`m4v data`: what-if equals a real run, facts that add up, JSON that scripts parse, errors of one line."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from data_home import CONFIG, DataHome, publish_beside, shared

from dataprep.quarantine import Reason
from m4v.core.errors import ExitClass
from pipelines.cli.main import main
from pipelines.inspection.quarantine import repair
from pipelines.recipe_files import apply_override

INSPECT = {
    "artifact_id", "run_id", "recipe", "clips", "kept", "kept_videos", "kept_seconds", "dropped_by_rule",
    "quarantined", "funnel", "sources", "scores", "filters", "dedup",
}  # fmt: skip
SCORE = {"name", "measured", "unmeasured", "mean", "quantiles", "edges", "kept", "dropped", "rules"}
RULE = {"rule", "key", "bound", "threshold", "breaks", "dropped", "alone"}
WHAT_IF = {
    "artifact_id", "run_id", "recipe", "set", "now", "then", "sources", "moves", "changed", "changes", "drift",
    "awaiting_captions",
}  # fmt: skip
CHANGE = {"clip_id", "source", "path", "media", "start_us", "end_us", "from", "to", "duplicate_of"}
HELD = {"artifact_id", "kind", "source", "source_id", "path", "reason", "detail", "step", "next"}
TRIES = [
    ["filters.min_frames=30"],  # the large copy goes, so the whole one stays
    ["filters.min_side=80"],
    ["filters.min_motion=null", "filters.max_frozen=null", "filters.min_frames=null"],
    ["filters.min_motion=0.2"],
    ["filters.max_motion=0.2", "filters.min_sharpness=7000"],
    ["dedup.exact=false"],
    ["dedup.perceptual=false"],
    ["dedup.exact=false", "dedup.perceptual=false", "filters.min_frames=5"],
    ["dedup.max_distance=0", "dedup.min_match=1.0"],
    ["filters.min_frames=30", "filters.min_side=null", "dedup.min_match=0.3"],
    ["dedup.semantic=true", "dedup.min_cosine=0.7", "dedup.perceptual=false"],
]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataHome:
    return shared(made_once)


@pytest.fixture
def call(made: DataHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`m4v data …` through the console entry point: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("M4V_HOME", str(made.home))
        monkeypatch.setattr(sys, "argv", ["m4v", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def read(call: Call) -> Callable[..., Any]:
    def run(*arguments: str) -> Any:
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def sets(tries: list[str]) -> list[str]:
    return [word for key in tries for word in ("--set", f"curate.{key}")]


def fates(directory: Path) -> dict[str, tuple[str, str | None]]:
    rows = pq.read_table(directory / "clips.parquet").to_pylist()
    return {r["clip_id"]: (r["drop_rule"] or "kept", r["duplicate_of"]) for r in rows}


@pytest.mark.parametrize("tries", TRIES, ids=" ".join)
def test_a_what_if_is_what_a_run_does(made: DataHome, read: Any, tries: list[str], tmp_path: Path) -> None:
    config = {"curate": copy.deepcopy(CONFIG)}
    for override in tries:
        apply_override(config, f"curate.{override}")
    really = fates(made.curate(tmp_path.name, config["curate"]))
    before = fates(made.work / "curated" / "staging" / "clips")
    tried = read("inspect", made.ids["clips"], *sets(tries))
    assert set(tried) >= WHAT_IF
    assert all(set(change) >= CHANGE for change in tried["changes"])
    sides = {c: (before[c][0], really[c][0]) for c in before if (before[c][0] == "kept") != (really[c][0] == "kept")}
    assert {c["clip_id"]: (c["from"], c["to"]) for c in tried["changes"]} == sides
    assert all(c["duplicate_of"] == really[c["clip_id"]][1] for c in tried["changes"])
    assert tried["then"]["kept"] == sum(fate == "kept" for fate, _ in really.values())
    moved = [(before[c][0], really[c][0]) for c in before if before[c][0] != really[c][0]]
    assert {(m["from"], m["to"]): m["clips"] for m in tried["moves"]} == {m: moved.count(m) for m in moved}
    assert tried["moves"], "settings that move nothing prove nothing"
    assert tried["drift"] == 0


def test_a_copy_stays_when_what_it_copied_goes(made: DataHome, read: Any) -> None:
    tried = read("inspect", made.ids["clips"], *sets(["filters.min_frames=30"]))
    changes = {Path(c["path"]).name: (c["from"], c["to"]) for c in tried["changes"]}
    assert changes["large.mp4"] == ("kept", "too_short")
    # Of all the copies that went for the large one, the first in the order of inputs stays, and no other.
    assert {name: pair for name, pair in changes.items() if pair[1] == "kept"} == {
        "coarse.mp4": ("duplicate_near", "kept")
    }
    assert tried["set"] == {"curate.filters.min_frames": {"now": 17, "then": 30}}
    assert tried["changed"] == len(tried["changes"])
    assert len(read("inspect", made.ids["clips"], *sets(["filters.min_frames=30"]), "--limit", "1")["changes"]) == 1


def test_facts_of_clips_add_up(made: DataHome, read: Any) -> None:
    facts = read("inspect", made.ids["clips"])
    assert set(facts) >= INSPECT
    assert facts["run_id"] == made.ids["curate run"]
    assert facts["recipe"] == "mine"
    assert facts["kept"] + sum(facts["dropped_by_rule"].values()) == facts["clips"] == 16
    assert facts["kept"] == facts["funnel"][-1]["out"] == sum(s["kept"] for s in facts["sources"])
    assert facts["quarantined"] == {"decode_error": 1, "empty": 1, "not_media": 1}
    assert [s["source"] for s in facts["sources"]] == ["shapes", "wild"]
    scores = {s["name"]: s for s in facts["scores"]}
    assert "nsfw" not in scores, "what was not measured has no distribution"
    for score in scores.values():
        assert set(score) >= SCORE
        assert sum(score["kept"]) + sum(score["dropped"]) == score["measured"] == 16 - score["unmeasured"]
        assert len(score["edges"]) == len(score["kept"]) + 1 == len(score["dropped"]) + 1
        assert score["edges"] == sorted(score["edges"])
        assert score["quantiles"]["p0"] <= score["quantiles"]["p50"] <= score["quantiles"]["p100"]
    assert scores["motion"]["measured"] == 14, "two stills have no motion"
    (static, fast) = scores["motion"]["rules"]
    assert set(static) >= RULE
    # The still one is frozen first; drawn clips that do not move are no matter of this rule.
    assert (static["rule"], static["threshold"], static["breaks"], static["dropped"]) == ("static", 0.1, 1, 0)
    assert fast["threshold"] is None
    (frozen,) = scores["frozen"]["rules"]
    assert (frozen["breaks"], frozen["dropped"], frozen["alone"]) == (1, 1, 0)


@pytest.mark.parametrize("name", ["curate run", "curate attempt", "pipeline"])
def test_a_run_stands_for_its_clips(made: DataHome, read: Any, name: str) -> None:
    assert read("inspect", made.ids[name])["artifact_id"] == made.ids["clips"]


def test_plain_lines_say_the_same(made: DataHome, call: Call) -> None:
    code, out, _ = call("inspect", made.ids["clips"][:9])
    assert code == 0
    assert "static\tcurate.filters.min_motion\tmin 0.1\t1\t0\t0" in out
    code, out, _ = call("inspect", made.ids["clips"], *sets(["filters.min_frames=30"]), "--limit", "1")
    assert code == 0
    assert "curate.filters.min_frames\t17\t30" in out
    assert "\n1 of 7 listed; --limit 7 or --json lists all\n" in out
    assert out.splitlines()[-1] == "m4v run mine --set curate.filters.min_frames=30"
    code, out, _ = call("inspect", made.ids["clips"], *sets(["filters.min_side=9000"]))
    assert "no clip would be kept: a run with these thresholds fails" in out
    code, out, _ = call("inspect", made.ids["clips"], *sets(["filters.min_motion=0.11"]))
    assert "no clip changes side" in out


def test_quarantine_says_why_and_what_helps(made: DataHome, read: Any, call: Call) -> None:
    found = read("quarantine", made.ids["clips"])
    assert found["counts"] == {"decode_error": 1, "empty": 1, "not_media": 1}
    assert {Path(i["path"]).name: i["reason"] for i in found["items"]} == {
        "noise.mp4": "decode_error", "empty.mp4": "empty", "page.mp4": "not_media",
    }  # fmt: skip
    assert all(set(item) >= HELD and item["next"] for item in found["items"])
    (one,) = read("quarantine", made.ids["pipeline"], "--reason", "empty")["items"]
    assert one["path"].endswith("empty.mp4")
    assert {a["kind"] for a in read("quarantine", made.ids["pipeline"])["artifacts"]} == {"clips", "dataset", "source"}
    assert read("quarantine", made.ids["source.shapes"])["items"] == []
    _, out, _ = call("quarantine", made.ids["dataset"])
    assert out.splitlines()[-1].endswith(" quarantined")
    code, _, err = call("quarantine", made.ids["clips"], "--reason", "decode")
    assert code == ExitClass.CONFIG
    assert "did you mean decode_error?" in err


def test_every_reason_has_advice_of_its_own() -> None:
    other = repair("a reason of tomorrow")
    assert [reason for reason in Reason if repair(reason) == other] == []
    assert repair("http_404") == repair("http_503") != other


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["inspect", "zzz"], ExitClass.CONFIG, "ledger has no such id: 'zzz'"),
        (["inspect", "dataset"], ExitClass.CONFIG, "this is a dataset, not clips"),
        (["inspect", "encode run"], ExitClass.CONFIG, "this run has made no clips"),
        (["inspect", "clips", "--set", "filters.min_motion=2"], ExitClass.CONFIG, "curate.filters.min_motion"),
        (["inspect", "clips", "--set", "curate.filters.min_moton=2"], ExitClass.CONFIG, "did you mean min_motion"),
        (["inspect", "clips", "--set", "curate.filters.min_motion=fast"], ExitClass.CONFIG, "min_motion"),
        (["inspect", "clips", "--set", "curate.filters.max_text=0.1"], ExitClass.CONFIG, "needs signals.text"),
        (["inspect", "clips", "--set", "curate.shots.threshold=0.9"], ExitClass.CONFIG, "needs a run: curate.shots"),
        (["inspect", "clips", "--set", "train.t2i.steps=9"], ExitClass.CONFIG, "only keys below curate"),
        (["quarantine", "curate run", "--reason", "x"], ExitClass.CONFIG, "nothing is quarantined for this reason"),
    ],
)
def test_errors_are_one_line(made: DataHome, call: Call, arguments: list[str], code: int, says: str) -> None:
    found, out, err = call(*(made.ids.get(word, word) for word in arguments))
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Next: " in err


def test_clips_of_older_versions_can_be_read_and_not_tried(
    made: DataHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(made.work / "curated" / "staging" / "clips", old)
    (old / "hashes.parquet").unlink()
    old_id = publish_beside(made, old)
    monkeypatch.setenv("M4V_HOME", str(made.home))
    monkeypatch.setattr(sys, "argv", ["m4v", "data", "inspect", old_id, "--json"])
    with pytest.raises(SystemExit):
        main()
    facts = json.loads(capsys.readouterr().out)
    assert facts["kept"] == facts["funnel"][-1]["out"]
    assert all(score["rules"] is None for score in facts["scores"])
    monkeypatch.setattr(sys, "argv", ["m4v", "data", "inspect", old_id, "--set", "curate.filters.min_frames=30"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitClass.CONFIG
    assert "the ledger does not know the thresholds" in capsys.readouterr().err


def test_preview_writes_a_page(made: DataHome, read: Any, call: Call, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = read("preview", made.ids["dataset"], "--out", str(page), "--clips", "3")
    assert told == {"artifact_id": made.ids["dataset"], "page": str(page), "size_bytes": page.stat().st_size}
    assert "Dataset preview" in page.read_text()
    code, out, _ = call("preview", made.ids["clips"], "--out", str(page))
    assert (code, out) == (0, f"{page} ({page.stat().st_size / 1024:.1f} KiB)\n")
    assert "Clips preview" in page.read_text()
    code, _, err = call("preview", made.ids["source.wild"], "--out", str(page))
    assert code == ExitClass.CONFIG
    assert "this is a source, not dataset or clips" in err
    code, _, err = call("preview", made.ids["clips"], "--out", str(tmp_path / "page.html" / "below.html"))
    assert code == ExitClass.CONFIG
    assert "the page cannot be written" in err
    assert err.count("\n") == 1


def test_kinds_of_source_are_told(read: Any, call: Call) -> None:
    kinds = {k["kind"]: k for k in read("sources")["kinds"]}
    assert set(kinds) >= {"folder", "images", "openvid", "webvid", "opensora_plan", "synthetic"}
    assert all(20 < len(k["purpose"]) < 130 and "kind" in k["keys"] for k in kinds.values())
    _, out, _ = call("sources")
    assert out.splitlines()[1].startswith("folder\tVideos with captions beside them\t")


def test_a_directory_is_sniffed_and_scanned(made: DataHome, read: Any, call: Call, tmp_path: Path) -> None:
    found = read("sources", str(made.folder), "--encoder-fps", "30")
    assert set(found) >= {"location", "guesses", "report", "recipe"}
    assert found["guesses"][0]["kind"] == "folder"
    assert found["report"]["accepted"] + sum(found["report"]["rejected"].values()) == 12
    # What is told can be pasted into a recipe.
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: micro\n" + found["recipe"])
    scanned = read("sources", str(recipe))
    by_name = {s["name"]: s for s in scanned["sources"]}
    assert by_name["wild"]["report"]["accepted"] == found["report"]["accepted"]
    assert by_name["wild"]["kind"] == "folder"
    assert scanned["totals"]["clips"] == sum(s["report"]["estimate"]["clips"] for s in scanned["sources"])
    code, out, _ = call("sources", str(made.folder))
    assert code == 0
    assert out.startswith("kind\tconfidence\twhy\nfolder\t")
    code, _, err = call("sources", str(tmp_path / "absent" / "folder"))
    assert code == ExitClass.CONFIG
    assert "collection directory does not exist" in err
    (tmp_path / "bare").mkdir()
    code, out, _ = call("sources", str(tmp_path / "bare"))
    assert (code, "nothing is recognised" in out) == (0, True)


def test_a_source_that_is_not_there_hides_no_other(read: Any, call: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"extends: micro\nsources: [{{name: gone, location: {tmp_path}/gone, adapter: {{kind: folder}}}}]\n"
    )
    code, out, err = call("sources", str(recipe), "--json")
    told = {s["name"]: s for s in json.loads(out)["sources"]}
    assert code == ExitClass.CONFIG
    assert told["shapes"]["report"]["accepted"] == 12
    assert told["shapes"]["licence"] == "CC0-1.0"
    assert told["gone"]["report"] is None
    assert told["gone"]["problem"] in err
    code, out, _ = call("sources", "micro", "--set", "sources.shapes.adapter.count=3")
    assert "shapes\tsynthetic\t7\t7\t4\t" in out
    code, _, err = call("sources", "mircro")
    assert code == ExitClass.CONFIG
    assert "did you mean micro?" in err
