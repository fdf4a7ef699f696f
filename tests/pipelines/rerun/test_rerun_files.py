"""The first difference of two files is told at the right place: tensor and index, path, row and column, member."""

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.rerun import FileVerdict, Tolerance, Verdict
from pipelines.rerun.files import compare_bytes, compare_files
from pipelines.rerun.verdict import worst


def safetensors(tensors: dict[str, np.ndarray], dtypes: dict[str, str] | None = None, facts: object = None) -> bytes:
    """A file written by hand, so that the reader is not held against itself; `dtypes` may call uint16 bfloat16."""
    names = {"float32": "F32", "float64": "F64", "int64": "I64", "uint16": "U16", "float16": "F16"}
    header: dict[str, object] = {} if facts is None else {"__metadata__": facts}
    body = b""
    for name, tensor in tensors.items():
        data = tensor.tobytes()
        dtype = (dtypes or {}).get(name, names.get(str(tensor.dtype), "F32"))
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def bfloat16(values: list[float]) -> np.ndarray:
    return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def compare(name: str, old: bytes, new: bytes, tolerance: Tolerance | None = None) -> FileVerdict:
    return compare_bytes(name, memoryview(old), memoryview(new), tolerance or Tolerance())


def weights(**changed: object) -> bytes:
    tensors = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.bias": np.ones(5, np.float32)}
    return safetensors({**tensors, **changed})


def test_equal_bytes_are_identical_whatever_they_are():
    assert compare("x.bin", b"abc", b"abc").verdict is Verdict.IDENTICAL
    assert compare("x.safetensors", b"", b"").verdict is Verdict.IDENTICAL


def test_one_changed_element_is_named_with_its_index_and_values():
    changed = np.arange(12, dtype=np.float32).reshape(3, 4)
    changed[2, 1] = -7
    found = compare("model.safetensors", weights(), weights(**{"a.weight": changed}))
    assert (found.verdict, found.how, found.equal_parts, found.parts) == (Verdict.DIFFERS, "tensors", 1, 2)
    assert (found.first.where, found.first.recorded, found.first.made) == ("tensor a.weight at [2, 1]", 9.0, -7.0)
    (tensor,) = found.tensors
    assert (tensor.name, tensor.differing, tensor.max_abs) == ("a.weight", 1, 16.0)
    assert tensor.max_rel == pytest.approx(16 / 9)


def test_small_errors_are_within_the_dtypes_tolerance_and_none_with_zero():
    changed = np.ones(5, np.float32)
    changed[3] += 2e-6
    old, new = weights(), weights(**{"b.bias": changed})
    found = compare("model.safetensors", old, new)
    assert found.verdict is Verdict.WITHIN
    assert 0 < found.max_abs < 3e-6
    assert compare("model.safetensors", old, new, Tolerance(rtol=0, atol=0)).verdict is Verdict.DIFFERS


def test_the_first_element_beyond_the_tolerance_is_shown_not_the_first_that_differs():
    changed = np.ones(5, np.float32)
    changed[1] += 1e-6
    changed[4] = 3
    found = compare("model.safetensors", weights(), weights(**{"b.bias": changed}))
    assert found.first.where == "tensor b.bias at [4]"
    assert found.tensors[0].differing == 2


def test_bfloat16_is_read_as_numbers():
    old = safetensors({"w": bfloat16([1.0, 2.0, 3.0])}, {"w": "BF16"})
    near = safetensors({"w": bfloat16([1.0, 2.015625, 3.0])}, {"w": "BF16"})
    far = safetensors({"w": bfloat16([1.0, 2.5, 3.0])}, {"w": "BF16"})
    assert compare("x.safetensors", old, near).verdict is Verdict.WITHIN
    found = compare("x.safetensors", old, far)
    assert (found.first.where, found.first.recorded, found.first.made) == ("tensor w at [1]", 2.0, 2.5)


def test_nan_equals_nan_and_nothing_else():
    nan, other = np.array([1, math.nan], np.float32), np.array([1, math.nan], np.float32)
    other.view(np.uint32)[1] ^= 1  # another NaN
    assert compare("x.safetensors", safetensors({"w": nan}), safetensors({"w": other})).verdict is Verdict.WITHIN
    found = compare("x.safetensors", safetensors({"w": nan}), safetensors({"w": np.ones(2, np.float32)}))
    assert found.verdict is Verdict.DIFFERS
    assert math.isinf(found.max_abs)


def test_whole_numbers_have_no_tolerance():
    old, new = np.array([10**12], np.int64), np.array([10**12 + 1], np.int64)
    assert compare("x.safetensors", safetensors({"n": old}), safetensors({"n": new})).verdict is Verdict.DIFFERS


@pytest.mark.parametrize(
    ("new", "where"),
    [
        (safetensors({"a.weight": np.zeros((3, 4), np.float32)}), "tensor b.bias"),
        (weights(**{"a.weight": np.zeros((4, 3), np.float32)}), "tensor a.weight"),
        (weights(**{"a.weight": np.arange(12, dtype=np.float64).reshape(3, 4)}), "tensor a.weight"),
        (safetensors({"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.bias": np.ones(5, np.float32)},
                     facts={"step": "3"}), "metadata"),
    ],
)  # fmt: skip
def test_missing_tensors_shapes_dtypes_and_metadata(new, where):
    found = compare("model.safetensors", weights(), new)
    assert (found.verdict, found.first.where) == (Verdict.DIFFERS, where)


def test_a_broken_safetensors_is_compared_byte_by_byte():
    found = compare("model.safetensors", weights(), b"short")
    assert found.verdict is Verdict.DIFFERS
    assert found.first.where.startswith("byte 0 (file is no safetensors")


def test_json_is_told_by_path():
    old = {"scores": [{"name": "a", "value": 0.5}, {"name": "b", "value": 1.5}], "n": 3}
    new = {"scores": [{"name": "a", "value": 0.5}, {"name": "b", "value": 2.5}], "n": 3}
    found = compare("scores.json", json.dumps(old).encode(), json.dumps(new).encode())
    assert (found.verdict, found.first.where) == (Verdict.DIFFERS, "$.scores[1].value")
    assert (found.first.recorded, found.first.made, found.max_abs) == (1.5, 2.5, 1.0)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "where"),
    [
        ({"v": 0.5}, {"v": 0.5 + 1e-12}, Verdict.WITHIN, "$.v"),
        ({"v": 0.5, "w": "x"}, {"v": 0.5 + 1e-12, "w": "y"}, Verdict.DIFFERS, "$.w"),
        ({"v": 1}, {"v": True}, Verdict.DIFFERS, "$.v"),
        ({"v": 1}, {}, Verdict.DIFFERS, "$.v"),
        ({"v": [1, 2]}, {"v": [1]}, Verdict.DIFFERS, "length of $.v"),
    ],
)
def test_json_numbers_within_tolerance_and_kinds_of_difference(old, new, verdict, where):
    found = compare("x.json", json.dumps(old).encode(), json.dumps(new).encode())
    assert (found.verdict, found.first.where) == (verdict, where)


def test_json_of_another_layout_differs_though_it_says_the_same():
    found = compare("x.json", b'{"a": 1}', b'{"a":1}')
    assert (found.verdict, found.first.where) == (Verdict.DIFFERS, "spaces or the order of keys")


def test_json_lines_and_text_are_told_by_line():
    found = compare("m.jsonl", b'{"loss": 1.0}\n{"loss": 2.0}\n', b'{"loss": 1.0}\n{"loss": 9.0}\n')
    assert found.first.where == "line 2 $.loss"
    assert compare("m.jsonl", b'{"a": 1}\n', b'{"a": 1}\n{"a": 2}\n').first.where == "line 2"
    found = compare("t.tsv", b"a\tb\nc\td\n", b"a\tb\nc\te\n")
    assert (found.first.where, found.first.recorded, found.first.made) == ("line 2", "c\td", "c\te")


def parquet(**columns: list) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_a_table_is_told_by_row_and_column():
    old = parquet(clip=["a", "b", "c"], score=[0.1, 0.2, 0.3], tags=[["x"], [], ["y", "z"]])
    new = parquet(clip=["a", "b", "c"], score=[0.1, 0.2, 0.9], tags=[["x"], ["new"], ["y", "z"]])
    found = compare("clips.parquet", old, new)
    assert (found.verdict, found.how, found.first.where) == (Verdict.DIFFERS, "table", "row 1, column tags")
    found = compare("clips.parquet", old, parquet(clip=["a", "b"], score=[0.1, 0.2], tags=[["x"], []]))
    assert (found.first.where, found.first.recorded, found.first.made) == ("number of rows", 3, 2)
    found = compare("clips.parquet", old, parquet(clip=["a"]))
    assert found.first.where == "columns"
    near = parquet(clip=["a", "b", "c"], score=[0.1, 0.2, 0.3 + 1e-15], tags=[["x"], [], ["y", "z"]])
    assert compare("clips.parquet", old, near).verdict is Verdict.WITHIN


def tar(mtime: int = 0, **members: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_a_shard_is_told_by_member_and_by_what_is_in_it():
    changed = np.ones(5, np.float32)
    changed[2] = 4
    old = tar(**{"k1.json": b'{"a": 1}', "k1.latent.safetensors": weights()})
    new = tar(**{"k1.json": b'{"a": 1}', "k1.latent.safetensors": weights(**{"b.bias": changed})})
    found = compare("shards/000000.tar", old, new)
    assert (found.verdict, found.how, found.equal_parts, found.parts) == (Verdict.DIFFERS, "archive", 1, 2)
    assert found.first.where == "member k1.latent.safetensors: tensor b.bias at [2]"
    assert found.tensors[0].name == "k1.latent.safetensors/b.bias"


def test_a_shards_members_and_headers():
    old = tar(a=b"1", b=b"2")
    assert compare("s.tar", old, tar(a=b"1", c=b"2")).first.where == "member number 1"
    assert compare("s.tar", old, tar(mtime=9, a=b"1", b=b"2")).first.where == "member a: header"


def test_other_files_are_told_by_byte(tmp_path: Path):
    old, new = tmp_path / "old.mp4", tmp_path / "new.mp4"
    old.write_bytes(b"0123456789")
    new.write_bytes(b"01234X6789")
    found = compare_files("v.mp4", old, new, Tolerance())
    assert (found.first.where, found.first.recorded, found.first.made) == ("byte 5", b"56789".hex(), b"X6789".hex())
    new.write_bytes(b"")
    found = compare_files("v.mp4", old, new, Tolerance())
    assert (found.first.where, found.first.made) == ("byte 0", None)


def test_the_worst_verdict_wins():
    assert worst([]) is Verdict.IDENTICAL
    assert worst([Verdict.WITHIN, Verdict.IDENTICAL]) is Verdict.WITHIN
    assert worst([Verdict.DIFFERS, Verdict.FAILED, Verdict.IDENTICAL]) is Verdict.FAILED
