"""Re-ingest of clips that were taken down: refused by id, span, bytes and pictures, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import nasty
import numpy as np
import pytest
from curation_runs import CHEAP, Curated, context, curated, inputs, list_source

from dataprep.blocked import Block, Blocked, BlockedCase, BlockedClip, BlockList
from dataprep.quarantine import Reason
from m4v.core.stage import InputRef
from m4v.video_io import encode_mp4

FOLDER: dict[str, Any] = {"kind": "folder", "require_captions": False, "licence": "CC0-1.0"}
CONFIG = {
    **CHEAP, "filters": {**CHEAP["filters"], "min_motion": None}, "missing_caption": "drop",
    "dedup": {"exact": False, "perceptual": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wild")
    pictures = nasty.frames(48, 96, 128)
    nasty.with_caption(place / "first.mp4", encode_mp4(pictures, 24))
    nasty.with_caption(place / "same.mp4", (place / "first.mp4").read_bytes())
    nasty.with_caption(place / "coarse.mp4", encode_mp4(pictures, 24, crf=30))
    nasty.with_caption(place / "large.mp4", encode_mp4(np.kron(pictures, np.ones((1, 2, 2, 1), np.uint8)), 24))
    nasty.with_caption(place / "cut.mp4", encode_mp4(pictures[8:40], 24, crf=20))
    nasty.good_clip(place / "other.mp4", count=48, height=96, width=128, seed=77)
    return place


@pytest.fixture(scope="module")
def source(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> InputRef:
    return list_source(tmp_path_factory.mktemp("listed"), "wild", folder, FOLDER)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("items")


def curate(work: Path, folder: Path, source: InputRef, items: Path, blocked: BlockList | None) -> Curated:
    made = context(work, "curate", CONFIG, inputs(source), {"wild": str(folder)}, items=items)
    if blocked is not None:
        (work / "blocked.json").write_bytes(blocked.to_bytes())
        attached = made.request.model_copy(update={"attachments": {"blocked": str(work / "blocked.json")}})
        made.request = attached
    return curated(made)


@pytest.fixture(scope="module")
def free(folder: Path, source: InputRef, items: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(tmp_path_factory.mktemp("free"), folder, source, items, None)


def clip_of(made: Curated, name: str) -> dict[str, Any]:
    return next(c for c in made.clips if c["path"] == name)


def blocked_clip(row: dict[str, Any], **changes: Any) -> BlockedClip:
    facts = {name: row[name] for name in ("clip_id", "source", "source_id", "source_digest", "start_us", "end_us")}
    values = {**facts, "media": row["media"], "phash": row["phash"], "content": row["content_digest"], **changes}
    return BlockedClip(**values)


def listed(*clips: BlockedClip, **case: Any) -> BlockList:
    return BlockList(cases=(BlockedCase(takedown_id="T1", clips=clips, **case),))


def taken(made: Curated) -> dict[str, str]:
    return {row.path: row.detail for row in made.quarantine if row.reason == Reason.TAKEDOWN}


def test_a_clip_and_its_copies_stay_out_and_say_why(
    free: Curated, folder: Path, source: InputRef, items: Path, tmp_path: Path
) -> None:
    assert len(free.clips) == 6
    assert taken(free) == {}
    gone = clip_of(free, "first.mp4")
    made = curate(tmp_path, folder, source, items, listed(blocked_clip(gone)))
    assert [c["path"] for c in made.clips] == ["other.mp4"]
    assert taken(made) == {
        "first.mp4": f"takedown T1: clip {gone['clip_id']}",
        "same.mp4": f"takedown T1: clip {gone['clip_id']}, overlapped",  # the same bytes under another name
        "coarse.mp4": f"takedown T1: pictures like those of clip {gone['clip_id']}",  # encoded anew
        "large.mp4": f"takedown T1: pictures like those of clip {gone['clip_id']}",
        "cut.mp4": f"takedown T1: pictures like those of clip {gone['clip_id']}",
    }
    assert sorted(p.stem for p in (made.directory / "previews").iterdir()) == [c["clip_id"] for c in made.clips]
    assert all(s["in"] - sum(s["dropped_by_reason"].values()) == s["out"] for s in made.funnel)
    assert made.manifest.summary["dropped_by_reason"]["takedown"] == 5
    # The clip that stays is the same row as ever.
    assert clip_of(made, "other.mp4") == clip_of(free, "other.mp4")


def test_a_list_that_matches_nothing_changes_no_byte(
    free: Curated, folder: Path, source: InputRef, items: Path, tmp_path: Path
) -> None:
    stranger = blocked_clip(
        clip_of(free, "other.mp4"), source="elsewhere", clip_id="0" * 32, source_digest="1" * 64, content="2" * 64,
        phash="0123456789abcdef-fedcba9876543210",
    )  # fmt: skip
    made = curate(tmp_path, folder, source, items, listed(stranger))
    assert made.manifest.artifact_id == free.manifest.artifact_id


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ({"sources": ["wild"]}, "collection wild"),
        ({"files": [["wild", "first.mp4"]]}, "file wild/first.mp4"),
        ({"digests": ["d" * 64]}, "bytes of file dddddddddddd"),
    ],
)
def test_whole_files_are_known_before_they_are_read(case: dict[str, Any], why: str) -> None:
    found = Blocked(BlockList(cases=(BlockedCase(takedown_id="T1", **case),))).file(
        "wild", "first.mp4", "d" * 64, "video"
    )
    assert found == Block("T1", why)
    assert Blocked(listed()).file("wild", "first.mp4", "d" * 64, "video") is None


def test_a_file_that_is_blocked_is_not_decoded(free: Curated, folder: Path, source: InputRef, tmp_path: Path) -> None:
    gone = clip_of(free, "other.mp4")
    items = tmp_path / "items"
    made = curate(tmp_path, folder, source, items, listed(files=(("wild", gone["source_id"]),)))
    assert taken(made) == {"other.mp4": f"takedown T1: file wild/{gone['source_id']}"}
    measured = [path.name for path in items.rglob("*") if path.is_file()]
    assert measured
    assert not [name for name in measured if name.startswith(gone["source_digest"])]
    step = {"step": "takedowns", "unit": "files", "in": 6, "out": 5, "dropped_by_reason": {"takedown": 1}}
    assert made.funnel[1] == step


def test_pictures_named_by_their_hashes_alone(
    free: Curated, folder: Path, source: InputRef, items: Path, tmp_path: Path
) -> None:
    words = clip_of(free, "first.mp4")["phash"]
    made = curate(tmp_path, folder, source, items, listed(phashes=(words,), phash_bits=8))
    assert "first.mp4" in taken(made)
    assert "other.mp4" not in taken(made)
    assert "-" in words


def test_another_part_of_the_same_file_stays(free: Curated) -> None:
    row = clip_of(free, "first.mp4")
    later = blocked_clip(row, start_us=10_000_000, end_us=12_000_000, clip_id="e" * 32, content="")
    blocked = Blocked(listed(later))
    assert blocked.file("wild", row["source_id"], row["source_digest"], "video") is None
    assert json.loads(listed(later).to_bytes())["cases"][0]["takedown_id"] == "T1"
