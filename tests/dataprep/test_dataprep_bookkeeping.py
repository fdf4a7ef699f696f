"""What keeps many files, clips and quarantine rows in little memory gives what all of them in memory would give."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep import quarantine, spool
from dataprep.captioning.provenance import Provenance
from dataprep.curate_config import DedupConfig, FilterConfig
from dataprep.curation import clip_log, publish, sorted_runs
from dataprep.curation.candidates import EMBEDDINGS, HASHES, read_candidates
from dataprep.curation.clip_ids import ClipIds
from dataprep.curation.clip_log import ClipLog
from dataprep.curation.filters import RULES, decide
from dataprep.curation.publish import Verdicts, kept_facts, write_tables
from dataprep.curation.table import CLIPS, Clip
from dataprep.digest_table import DigestTable
from dataprep.media.geometry import Box
from dataprep.quarantine import QuarantineLog, QuarantineRow
from dataprep.signals.frames import COLUMNS, pack, unpack
from dataprep.signals.phash import as_text
from dataprep.sources.listing import ListedFile
from dataprep.spool import SortedSpool, Spool, chunks

NO_FILTERS = FilterConfig.model_validate({rule.threshold: None for rule in RULES} | {"min_frames": 12})


def test_a_spool_gives_back_what_was_added_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BATCH", 4)
    items = Spool[dict[str, int]]()
    items.extend({"n": n} for n in range(11))
    assert len(items) == 11
    assert [one["n"] for one in items] == [one["n"] for one in items] == list(range(11))
    assert [len(batch) for batch in items.batches()] == [4, 4, 3]
    items.append({"n": 11})
    assert [len(some) for some in chunks(items, 5)] == [5, 5, 2]


def test_a_sorted_spool_is_a_stable_sort() -> None:
    rows = [(random.Random(n).randrange(7), n) for n in range(500)]
    items = SortedSpool[tuple[int, int]](lambda row: row[0], run=30)
    for row in rows:
        items.append(row)
    assert list(items) == sorted(rows, key=lambda row: row[0])
    assert len(items) == 500


def test_a_digest_keeps_its_first_number_while_the_table_grows() -> None:
    table = DigestTable()
    digests = [n.to_bytes(8, "little") * 2 for n in range(9000)]
    clash = [(n * 8192).to_bytes(8, "little") + bytes([1]) * 8 for n in range(300)]  # all want one slot
    assert {table.add(digest, n) for n, digest in enumerate(digests)} == {None}
    assert {table.add(digest, n) for n, digest in enumerate(clash)} == {None}
    assert [table.add(digest, -1) for digest in digests] == list(range(9000))
    assert [table.add(digest, -1) for digest in clash] == list(range(300))
    assert len(table) == 9300


def test_columns_come_back_as_they_were_packed() -> None:
    columns = {name: np.arange(n).astype(kind) for n, (name, kind) in enumerate(COLUMNS.items())}
    columns |= {"damaged": np.array([True, False]), "start_us": np.array([-1, 1 << 62]), "none": np.zeros(0, np.int32)}
    columns["luma"] = np.array([np.nan, -0.0, np.inf], np.float32)
    found = unpack(pack(columns))
    assert list(found) == list(columns)
    for name, values in columns.items():
        assert (found[name].dtype, found[name].tobytes()) == (values.dtype, values.tobytes())
        assert found[name].flags.writeable


def test_clip_ids_know_the_file_that_they_stand_for() -> None:
    ids = ClipIds()
    one, two, three = ("1" * 32, "2" * 32, "3" * 32)
    assert [ids.add(one, "a.mp4"), ids.add(two, "a.mp4"), ids.add(three, "ü.mp4")] == [None] * 3
    assert [ids.add(i, "z.mp4") for i in (one, two, three)] == ["a.mp4", "a.mp4", "ü.mp4"]


def test_a_long_quarantine_is_sorted_and_each_row_is_in_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_GROUP_ROWS", 40)
    monkeypatch.setattr(quarantine, "_PART_ROWS", 7)
    monkeypatch.setattr(quarantine, "RUN", 16)
    chosen = random.Random(3)
    rows = [
        QuarantineRow("s", str(chosen.randrange(9)), "é" * chosen.randrange(3), "too_short", "d" * 600, "probe")
        for _ in range(200)
    ] + [QuarantineRow("s", str(n), "p", "empty", f"d{n}", "image") for n in range(100)]
    log = QuarantineLog(rows)
    assert log.write(tmp_path / "q.parquet") == len(set(rows))
    expected = [{**vars(row), "detail": row.detail[:500]} for row in sorted(set(rows))]
    assert pq.read_table(tmp_path / "q.parquet").to_pylist() == expected
    assert (len(log), log.reasons(), log.reasons(("image",))) == (300, {"too_short": 200, "empty": 100}, {"empty": 100})
    assert QuarantineLog().write(tmp_path / "none.parquet") == 0
    assert pq.read_schema(tmp_path / "none.parquet") == quarantine.SCHEMA


def _clip(number: int) -> Clip:
    """Every seventh has the pictures of the one before; every fifth is too short."""
    chosen = np.random.default_rng(number - (number % 7 == 6))
    hashes = chosen.integers(1, 1 << 64, 16, dtype=np.uint64)
    content = f"{chosen.integers(1 << 60):032x}"
    frames = 8 if number % 5 == 4 else 40
    file = ListedFile(f"{number * 7919 % 101:03}.mp4", 10, f"{number:064x}", "video", str(number), "CC0-1.0")
    return Clip(
        f"s{number % 3}", file, False, 0, frames * 40_000, 0, frames, 25.0, 320, 180, Box(0, 0, 320, 180),
        (f"clip {number}",), as_text(hashes), content, hashes, hashes, number, {"motion": number / 7},
        embedding=bytes([number % 100]) * 8, provenance=(Provenance("source", "t.csv", None, (), 2),),
    )  # fmt: skip


def _logged(clips: list[Clip]) -> ClipLog:
    log = ClipLog(provenance=True, objects=True)
    for clip in clips:
        log.add(clip)
    return log


def _published(log: ClipLog, directory: Path) -> Verdicts:
    directory.mkdir()
    verdicts = Verdicts.of(decide(log.candidates(), NO_FILTERS, DedupConfig()))
    write_tables(directory, log, verdicts)
    return verdicts


def test_clips_in_many_runs_become_the_tables_of_clips_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [_clip(number) for number in range(300)]
    whole = _published(_logged(clips), tmp_path / "whole")
    for module, name, value in (
        (clip_log, "_PART_ROWS", 3), (sorted_runs, "RUN_ROWS", 50), (sorted_runs, "_BATCH_ROWS", 4),
        (sorted_runs, "_MERGED_ROWS", 8),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    log = _logged(clips[::-1])
    parts = _published(log, tmp_path / "parts")
    for name in (CLIPS, HASHES, EMBEDDINGS):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = pq.read_table(tmp_path / "parts" / CLIPS).to_pylist()
    ordered = sorted(clips, key=lambda c: (c.source, c.file.path, c.start_us, c.clip_id))
    names = {clip.clip_id: clip for clip in clips}
    assert [row["clip_id"] for row in rows] == [clip.clip_id for clip in ordered]
    assert [row["captions"] for row in rows] == [list(clip.captions) for clip in ordered]
    assert {r["drop_rule"] for r in rows} == {None, "too_short", "duplicate_exact"}
    for row in rows:
        assert row["kept"] == (row["drop_rule"] is None)
        if row["duplicate_of"] is not None:
            assert names[row["duplicate_of"]].content == names[row["clip_id"]].content
    assert parts.dropped() == whole.dropped()
    kept = [row for row in rows if row["kept"]]
    facts = {"kept_videos": len(kept), "kept_seconds": round(sum(r["end_us"] for r in kept) / 1e6, 3)}
    assert kept_facts(log, parts.kept) == facts
    again = decide(read_candidates(*(tmp_path / "parts" / n for n in (CLIPS, HASHES))), NO_FILTERS, DedupConfig())
    assert again.drop_rules == [row["drop_rule"] for row in rows]
    assert again.duplicate_of == [row["duplicate_of"] for row in rows]


def test_new_captions_and_clips_that_go_reach_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_GROUP_ROWS", 16)
    monkeypatch.setattr(sorted_runs, "RUN_ROWS", 20)
    monkeypatch.setattr(clip_log, "_PART_ROWS", 6)
    log = _logged([_clip(number) for number in range(60)])
    verdicts = Verdicts.of(decide(log.candidates(), NO_FILTERS, DedupConfig()))
    kept = verdicts.kept
    found = list(log.chosen(kept))
    assert len(found) == np.count_nonzero(kept)
    (rewritten, changed), (out, gone), (dropped, without) = found[0], found[1], found[2]
    changed.captions, changed.provenance = ("new",), (Provenance("model", "short", "m", (), 1),)
    without.drop_rule = "missing_caption"
    verdicts.take(rewritten, changed)
    verdicts.take(dropped, without)
    verdicts.gone.add(out)
    write_tables(tmp_path, log, verdicts)
    rows = {row["clip_id"]: row for row in pq.read_table(tmp_path / CLIPS).to_pylist()}
    assert len(rows) == 59
    assert gone.clip_id not in rows
    assert gone.clip_id not in pq.read_table(tmp_path / HASHES)["clip_id"].to_pylist()
    assert rows[changed.clip_id] == pa.Table.from_pylist([changed.row()], schema=log.table_schema).to_pylist()[0]
    assert (rows[without.clip_id]["kept"], rows[without.clip_id]["drop_rule"]) == (False, "missing_caption")
    assert [pq.ParquetFile(tmp_path / CLIPS).metadata.row_group(k).num_rows for k in range(4)] == [16, 16, 16, 11]
