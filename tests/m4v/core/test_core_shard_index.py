"""The index of a dataset version: same rows, same bytes, whatever their order and however they are merged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4v.core import shard_index
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import SCHEMA, read_index, write_index, write_index_table


def rows(count: int) -> list[dict[str, object]]:
    """Clips with one to three samples each; some text columns are empty."""
    generator = np.random.default_rng(count)
    clips = [f"{k:032x}" for k in generator.integers(0, 1 << 62, count // 2 + 1)]
    made = []
    for number in range(count):
        row: dict[str, object] = {field.name: f"{field.name}-{number}" for field in SCHEMA if field.type == pa.string()}
        row |= {field.name: number for field in SCHEMA if field.type != pa.string()}
        made.append({**row, "clip_id": clips[number % len(clips)], "licence": None if number % 3 else "CC-BY"})
    return made


def reference(path: Path, made: list[dict[str, object]]) -> bytes:
    """Everything sorted at once and written at once."""
    ordered = sorted(made, key=lambda r: (str(r["clip_id"]), str(r["sample_id"])))
    table = pa.Table.from_pylist(ordered, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", row_group_size=shard_index.GROUP_ROWS)
    return path.read_bytes()


@pytest.mark.parametrize("count", [0, 1, 40, 500])
def test_merged_runs_are_the_bytes_of_one_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name, value in (("GROUP_ROWS", 64), ("RUN_ROWS", 48), ("_MERGED_ROWS", 100), ("_BATCH_ROWS", 7)):
        monkeypatch.setattr(shard_index, name, value)
    made = rows(count)
    expected = reference(tmp_path / "reference", made)
    write_index(tmp_path / "one", made)
    write_index(tmp_path / "two", made[::-1])
    write_index_table(tmp_path / "three", pa.Table.from_pylist(made, schema=SCHEMA))
    assert all((tmp_path / name).read_bytes() == expected for name in ("one", "two", "three"))
    assert read_index(tmp_path / "one").num_rows == count


def test_runs_are_removed_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_index, "RUN_ROWS", 10)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stopping() -> Iterator[dict[str, object]]:
        yield from rows(25)
        assert list(tmp_path.iterdir())
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_index(tmp_path / "index", stopping())
    assert not list(tmp_path.iterdir())


def test_some_columns_are_read_and_other_files_refused(tmp_path: Path) -> None:
    write_index(tmp_path / "index", rows(5))
    assert read_index(tmp_path / "index", ["tokens", "sample_id"]).column_names == ["tokens", "sample_id"]
    pq.write_table(pa.table({"sample_id": ["a"]}), tmp_path / "other")
    with pytest.raises(DataIntegrityError, match="other columns"):
        read_index(tmp_path / "other", ["sample_id"])
    (tmp_path / "text").write_text("no table")
    with pytest.raises(DataIntegrityError, match="does not parse"):
        read_index(tmp_path / "text")
