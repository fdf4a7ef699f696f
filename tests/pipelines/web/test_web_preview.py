"""The data preview: what it says, what it leaves out and says so, and that texts from outside stay texts."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from data_home import HOSTILE, DataHome, publish_beside, shared
from test_web_report import Balanced

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError
from pipelines.inspection.clip_table import ClipTable, RuleFacts, ScoreFacts
from pipelines.inspection.samples import _share_out, rows_at, spread_sample
from pipelines.inspection.targets import Target, beside, find_target
from pipelines.ledger import Ledger
from pipelines.web import preview
from pipelines.web.histograms import HEIGHT, LEFT, WIDTH, histogram
from pipelines.web.preview import Limits
from pipelines.workspace import Workspace


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataHome:
    return shared(made_once)


def page_of(made: DataHome, identity: str, limits: Limits | None = None, *overrides: str) -> str:
    workspace = Workspace.open(made.home)
    with Ledger.open(workspace.ledger_url) as ledger:
        named = find_target(workspace, ledger, identity, (ArtifactKind.DATASET, ArtifactKind.CLIPS))
        return preview.build(named, *beside(workspace, ledger, named), limits or Limits(), overrides)


@pytest.fixture(scope="module")
def page(made: DataHome) -> str:
    return page_of(made, made.ids["clips"])


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_html_is_well_formed_and_self_contained(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert [u for u in parser.links if not u.startswith(("data:", "#"))] == []
    assert all(u[1:] in parser.ids for u in parser.links if u.startswith("#"))
    assert "default-src 'none'" in page


def test_texts_from_outside_are_escaped(page: str) -> None:
    assert HOSTILE not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_page_says_what_the_table_holds(made: DataHome, page: str) -> None:
    text = text_of(page)
    assert "of 16 candidates" in text
    assert "All 16 clips." in text
    assert page.count('<figure class="clip"') == 16
    assert "filters" in text
    assert "too_short −1" in text
    assert "static: below 0.1" in text
    assert "too_short: below 17" in text
    for reason in ("decode_error", "empty", "not_media"):
        assert reason in text
    assert "copy or download the file again" in text
    assert made.ids["clips"][:10] in text
    assert f"encoded as dataset {made.ids['dataset'][:10]}" in text


def test_the_same_page_twice(made: DataHome, page: str) -> None:
    assert page_of(made, made.ids["clips"]) == page


def test_a_dataset_has_its_buckets_and_its_clips(made: DataHome) -> None:
    text = text_of(page_of(made, made.ids["dataset"]))
    workspace = Workspace.open(made.home)
    with Ledger.open(workspace.ledger_url) as ledger:
        artifact = find_target(workspace, ledger, made.ids["dataset"], (ArtifactKind.DATASET,)).artifact
    facts = json.loads(artifact.path("dataset.json").read_text())
    assert "Dataset preview" in text
    assert f"{facts['samples']} samples of {facts['tokens']:,} latent tokens" in text
    for bucket in facts["buckets"]:
        assert f"{bucket['height']}×{bucket['width']}" in text
        assert "×".join(map(str, bucket["latent"])) in text
    assert "over 2 clips" in text
    assert "of 16 candidates" in text


def test_a_capped_sample_states_its_totals(made: DataHome) -> None:
    page = page_of(made, made.ids["clips"], Limits(clips=6, media_mib=0))
    assert page.count('<figure class="clip"') == 6
    assert "6 of 16 clips, of every rule and every source" in text_of(page)
    assert "data:image/jpeg" not in page
    assert re.search(r"\d+ pictures left out", text_of(page))
    assert "left out to keep the page small" in page


def test_a_what_if_shows_the_clips_that_change_side(made: DataHome) -> None:
    page = page_of(made, made.ids["clips"], None, "curate.filters.min_frames=30")
    text = text_of(page)
    assert "curate.filters.min_frames 17 30" in text
    assert "too_short: below 30" in text
    assert "7 clips change side" in text
    assert page.count(' data-then="') == len(re.findall(r'data-fate="(?!kept)[a-z_]+"[^>]*data-then="', page)) + 6
    assert page.count('data-fate="duplicate_near" data-source="wild" data-then="kept"') == 1
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    quiet = text_of(page_of(made, made.ids["clips"], None, "curate.filters.min_motion=0.11"))
    assert "0 clips change side" in quiet
    with pytest.raises(ConfigError, match="needs a run"):
        page_of(made, made.ids["dataset"], None, "curate.shots.threshold=0.9")


def test_clips_of_unknown_origin_have_no_thresholds(made: DataHome, tmp_path: Path) -> None:
    shutil.copytree(made.work / "curated" / "staging" / "clips", tmp_path / "old")
    (tmp_path / "old" / "hashes.parquet").unlink()
    page = page_of(made, publish_beside(made, tmp_path / "old"))
    assert "All 16 clips." in text_of(page)
    assert 'class="threshold"' not in page


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 200))
def test_shares_are_fair(sizes: list[int], wanted: int) -> None:
    shares = _share_out(sizes, wanted)
    assert sum(shares) == min(wanted, sum(sizes))
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    open_ = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    # Nobody who could give more gives less than another by more than one.
    assert all(share <= min(open_, default=share) + 1 for share in shares)


def test_samples_hold_every_rule_and_rows_come_back_in_order(made: DataHome) -> None:
    workspace = Workspace.open(made.home)
    with Ledger.open(workspace.ledger_url) as ledger:
        target: Target = find_target(workspace, ledger, made.ids["clips"], (ArtifactKind.CLIPS,))
    table = ClipTable(target.artifact)
    groups = len({(table.fates[p], table.sources[p]) for p in range(table.clips)})
    places = spread_sample(table, groups)
    assert len(places) == groups == len({(table.fates[p], table.sources[p]) for p in places})
    path = target.artifact.path("clips.parquet")
    rows = list(rows_at(path, places, ["clip_id", "no such column"]))
    assert [r["clip_id"] for r in rows] == [pq.read_table(path)["clip_id"][int(p)].as_py() for p in places]


def facts(**changes: Any) -> ScoreFacts:
    rule = RuleFacts("static", "min_motion", "min", 0.25, 3, 3, 3)
    score = ScoreFacts(
        name="motion", measured=9, unmeasured=0, mean=0.5, quantiles={}, edges=(0.0, 0.5, 1.0), kept=(0, 4),
        dropped=(4, 1), rules=(rule,),
    )  # fmt: skip
    return dataclasses.replace(score, **changes)


def test_histograms_place_bars_and_thresholds() -> None:
    chart = histogram(facts())
    low, high = chart.bars
    assert (low.kept_height, low.dropped_height > 0) == (0, True)
    assert high.kept_height == pytest.approx(4 * high.dropped_height, rel=0.01)
    assert high.dropped_y + high.dropped_height == pytest.approx(high.kept_y)
    assert high.kept_y + high.kept_height == pytest.approx(chart.base)
    assert min(high.dropped_y, low.dropped_y) >= 16 - 0.01
    assert chart.base < HEIGHT
    (mark,) = chart.marks
    assert mark.x == pytest.approx(LEFT + 0.25 * (WIDTH - 2 * LEFT))
    assert (mark.shade_x, mark.shade_x + mark.shade_width) == (LEFT, mark.x)
    assert mark.label == "static: below 0.25"
    outside = histogram(facts(edges=(0.5, 0.75, 1.0)))
    assert (outside.marks, outside.outside) == ((), ("static: below 0.25",))
    uneven = histogram(facts(edges=(0.0, 0.25, 100.0)))
    assert uneven.marks[0].x == pytest.approx(WIDTH / 2)
    assert np.isfinite(histogram(facts(kept=(0, 0), dropped=(0, 0))).bars[0].kept_y)
