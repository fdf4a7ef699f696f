"""What a merge brings together twice, found by keys and in passes, against every pair compared."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from version_support import Clip, Versions

from dataprep.versions import twice
from dataprep.versions.parents import Parent
from m4v.core.shard_index import INDEX, read_index


@pytest.fixture
def local(tmp_path: Path) -> Versions:
    return Versions(tmp_path, str(tmp_path / "store"))


@pytest.mark.parametrize("at_once", [3, 1000])
def test_what_is_found_in_passes_is_what_there_is(
    local: Versions, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(twice, "_AT_ONCE", at_once)
    drawn = np.random.default_rng(5)
    spans = {
        (f"film {drawn.integers(5)}", int(start), int(start + drawn.integers(1, 6)))
        for start in drawn.integers(0, 40, 60)
    }
    clips = [Clip(name, start_us=start, end_us=end) for name, start, end in sorted(spans)]
    clips += [Clip("picture", media="image", end_us=0), Clip("another", media="image", end_us=0)]
    parents = [Parent.read(local.dataset(some)) for some in (clips[::2], clips[1::2])]
    kept = [np.ones(parent.rows, bool) for parent in parents]
    kept[0][3] = False
    rows = [
        row
        for parent, mask in zip(parents, kept, strict=True)
        for row, stays in zip(read_index(parent.artifact.path(INDEX)).to_pylist(), mask, strict=True)
        if stays and row["end_us"]
    ]
    pairs = [
        (a, b)
        for a, b in combinations(rows, 2)
        if a["source_id"] == b["source_id"] and a["start_us"] < b["end_us"] and b["start_us"] < a["end_us"]
    ]
    found = twice.overlaps(parents, kept)
    runs_into = {(pair[0]["clip_id"], pair[1]["clip_id"]) for pair in pairs}
    assert 0 < found.count <= len(pairs)
    assert all((o.first, o.second) in runs_into or (o.second, o.first) in runs_into for o in found.first)
    # Each clip that runs into one that began before it is told once, with the one that reaches furthest.
    later = {max(pair, key=lambda r: (r["start_us"], r["end_us"], r["clip_id"]))["clip_id"] for pair in pairs}
    assert found.count == len(later)
    assert found.first == sorted(found.first)
    assert len(found.first) == min(found.count, twice.EXAMPLES)


def test_clips_of_several_sizes_are_counted_in_passes(local: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twice, "_AT_ONCE", 2)
    names = [f"film {n}" for n in range(14)]
    small = local.dataset([Clip(name, end_us=9) for name in names])
    large = local.dataset([Clip(name, end_us=9) for name in names[2:]] + [Clip("new")])
    parents = [Parent.read(small), Parent.read(large)]
    found = twice.repeated_clips(parents, [np.ones(parent.rows, bool) for parent in parents])
    assert found.count == 12
    assert found.first == sorted(Clip(name, end_us=9).clip_id for name in names[2:])[: twice.EXAMPLES]
