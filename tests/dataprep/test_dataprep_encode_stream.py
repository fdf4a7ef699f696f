"""Encoding with next to nothing in memory gives the dataset that it gives with all of it; which clips are shown."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from encode_support import make_bench, tree_digest

from dataprep import spool
from dataprep.buckets import Bucket
from dataprep.encode import dataset
from dataprep.encode.clips import KeptClip
from dataprep.encode.dataset import EncodedClip
from dataprep.encode.jobs import ClipMedia
from dataprep.encode.spread import Done, Spread
from dataprep.media.location import MediaFile

CONFIG: dict[str, object] = {
    "buckets": {"sizes": [[64, 128], [64, 64]], "frames": [9, 17]}, "text_encoder": {"slots": 16}, "reconstructions": 2,
    "shards": {"samples": 2},
}  # fmt: skip


def test_a_dataset_does_not_depend_on_what_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tmp_path)
    whole, _ = bench.encode("whole", CONFIG, items="items")
    monkeypatch.setattr(spool, "BATCH", 2)
    monkeypatch.setattr(dataset, "_ROWS_TOGETHER", 1)
    monkeypatch.setattr(dataset, "RUN_ROWS", 2)
    monkeypatch.setattr(dataset, "RUN", 2)
    parts, _ = bench.encode("parts", CONFIG, items="items")
    assert tree_digest(parts) == tree_digest(whole)
    assert len(list((parts / "shards").glob("*.tar"))) >= 3


def _done(media: str, source: str, name: str) -> Done:
    clip = KeptClip(
        name, source, name, name, "d", 1, media, 0, 1, 0, 9, 24.0, 96, 64, None, ("c",), "d", "", "CC0-1.0", ()
    )
    file = MediaFile("r", name, 1, "d", True, "c")
    pixels = ClipMedia(file, 0, 9, None, 24.0, ())
    return Done(EncodedClip(clip, Bucket(9, 64, 96), 24.0, "l", "t", name), pixels)


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_what_is_shown_does_not_depend_on_the_order_of_the_clips(count: int) -> None:
    clips = [
        _done(media, source, f"{n:02}{media}{source}")
        for n in range(4) for media in ("image", "video") for source in ("a", "b")
    ]  # fmt: skip
    found = []
    for seed in range(3):
        spread = Spread(count)
        for one in random.Random(seed).sample(clips, len(clips)):
            spread.add(one)
        found.append([one.encoded.clip.clip_id for one in spread.chosen()])
    expected = [f"{n:02}{media}{s}" for media in ("video", "image") for n in range(4) for s in ("a", "b")]
    assert found == [expected[:count]] * 3
