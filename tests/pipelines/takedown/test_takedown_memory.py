"""What a takedown reads of large tables it reads in parts, with the same result."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.curation.table import CLIPS
from m4v.core.canonical import canonical_json, digest_bytes
from pipelines.takedown import replace
from pipelines.takedown.affected import _rows
from pipelines.takedown.delete import _spans
from pipelines.takedown.replace import PROOF, samples_digest


class Table:
    """The part of an artifact that is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def path(self, _: str) -> Path:
        return self._path

    def names(self) -> list[str]:
        return [CLIPS]


@pytest.fixture
def table(tmp_path: Path) -> Any:
    rows = [
        {
            "clip_id": f"clip{n}",
            "source_digest": f"file{n // 2}",
            "first_frame": n,
            "frames": 9,
            "content_digest": f"c{n}",
        }
        for n in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / CLIPS, row_group_size=7)
    return Table(tmp_path / CLIPS)


def test_rows_of_clips_come_from_every_part(table: Any) -> None:
    wanted = pa.array(["clip3", "clip48", "elsewhere"], pa.string())
    assert _rows(table, CLIPS, ("clip_id", "content_digest"), wanted) == [
        {"clip_id": "clip3", "content_digest": "c3"}, {"clip_id": "clip48", "content_digest": "c48"},
    ]  # fmt: skip


def test_files_with_other_clips_in_any_part_stay(table: Any) -> None:
    rows, staying = _spans(table, frozenset({"clip6", "clip7", "clip20"}))
    assert [row["first_frame"] for row in rows] == [6, 7, 20]
    assert "file3" not in staying  # both of its clips go
    assert "file10" in staying


def test_the_digest_of_samples_does_not_depend_on_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    index = pa.table({name: [f"{name}{n * 7 % 23:02}" for n in range(23)] for name in PROOF})
    rows = sorted(index.to_pylist(), key=lambda row: row["sample_id"])
    expected = digest_bytes(b"\n".join(canonical_json(row) for row in rows))
    assert samples_digest(index) == expected
    monkeypatch.setattr(replace, "BATCH", 4)
    assert samples_digest(index) == expected
    assert samples_digest(index.slice(0, 0)) == digest_bytes(b"")
