"""Two dataset versions side by side, against sets counted by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import InputError
from m4v.core.shard_index import SCHEMA, write_index
from pipelines.inspection.targets import Target
from pipelines.inspection.version_diff import compare_versions


def _row(source: str, number: int, bucket: tuple[int, int, int]) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(SCHEMA.names)
    t, h, w = bucket
    return {
        **row, "clip_id": f"{source}{number:04d}".ljust(32, "0"), "sample_id": f"{number}{t}".ljust(32, "0"),
        "source": source, "source_id": f"video{number}", "start_us": number, "end_us": number + 5,
        "media": "video" if t > 1 else "image", "bucket_t": t, "bucket_h": h, "bucket_w": w, "tokens": t * h * w // 4,
    }  # fmt: skip


def _artifact(
    folder: Path, kind: ArtifactKind, rows: Iterable[dict[str, object]] = (), funnel: object = None
) -> Target:
    folder.mkdir()
    if kind == ArtifactKind.DATASET:
        write_index(folder / "index.parquet", rows)
    if funnel is not None:
        (folder / "funnel.json").write_text(json.dumps(funnel))
    manifest = build_manifest(folder, kind, {})
    write_manifest(folder, manifest)
    return Target(Artifact(str(folder), manifest.artifact_id, kind, folder / "cache"), None)


def test_clips_buckets_and_funnels_are_counted_on_both_sides(tmp_path: Path) -> None:
    small, large = (1, 8, 8), (3, 8, 16)
    first = [_row("a", n, small) for n in range(4)] + [_row("b", n, large) for n in range(3)]
    # Clip b1 goes, a4 and c0 come; a0 stands in two buckets, and is one clip.
    second = [r for r in first if not str(r["clip_id"]).startswith("b0001")]
    second += [_row("a", 4, small), _row("c", 0, large), _row("a", 0, large)]
    before = _artifact(tmp_path / "it's first", ArtifactKind.DATASET, first)
    after = _artifact(tmp_path / "second", ArtifactKind.DATASET, second)
    steps = [{"step": "filter", "unit": "clips", "in": 9, "out": 7, "dropped_by_reason": {"text": 2}}]
    more = [{**steps[0], "out": 8}, {"step": "dedup", "unit": "clips", "in": 8, "out": 8, "dropped_by_reason": {}}]
    funnels = [_artifact(tmp_path / f"f{n}", ArtifactKind.CLIPS, (), f).artifact for n, f in enumerate((steps, more))]

    diff = compare_versions(before, after, *funnels)

    assert [(r.source, r.before, r.after, r.added, r.removed) for r in diff.sources] == [
        ("a", 4, 5, 1, 0), ("b", 3, 2, 0, 1), ("c", 0, 1, 1, 0),
    ]  # fmt: skip
    assert (diff.added_clips, diff.removed_clips, diff.common_clips) == (2, 1, 6)
    assert [c.clip_id[:5] for c in diff.added] == ["a0004", "c0000"]
    assert [(c.clip_id[:5], c.source_id, c.start_us, c.end_us) for c in diff.removed] == [("b0001", "video1", 1, 6)]
    assert [(b.media, b.frames, b.height, b.width) for b in diff.buckets] == [
        ("image", 1, 64, 64),
        ("video", 17, 64, 128),
    ]
    assert [(b.samples_before, b.samples_after) for b in diff.buckets] == [(4, 5), (3, 4)]
    assert [(b.tokens_before, b.tokens_after) for b in diff.buckets] == [(64, 80), (288, 384)]
    assert [(f.step, f.before, f.after) for f in diff.funnel] == [("filter", (7, 9), (8, 9)), ("dedup", None, (8, 8))]


def test_a_version_equals_itself(tmp_path: Path) -> None:
    target = _artifact(tmp_path / "one", ArtifactKind.DATASET, [_row("a", n, (1, 8, 8)) for n in range(3)])
    diff = compare_versions(target, target)
    assert (diff.added_clips, diff.removed_clips, diff.common_clips, diff.added) == (0, 0, 3, ())


def test_artifacts_of_other_kinds_are_refused(tmp_path: Path) -> None:
    dataset = _artifact(tmp_path / "one", ArtifactKind.DATASET, [_row("a", 0, (1, 8, 8))])
    clips = _artifact(tmp_path / "two", ArtifactKind.CLIPS, (), [])
    with pytest.raises(InputError, match="a dataset cannot be compared with a clips"):
        compare_versions(dataset, clips)
