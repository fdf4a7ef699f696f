import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_runs import publish

from dataprep.sources import scan
from dataprep.sources.config import OpenSoraPlanConfig
from dataprep.sources.json_stream import read_json_array
from dataprep.sources.keys import KeySet, SpanGroups, SpanRow
from dataprep.sources.listing import Rejected, SourceListing, SourceReader
from dataprep.sources.tables import Record
from m4v.core.errors import InputError
from m4v.core.storage import Storage

V11 = {
    "path": "Fish/mixkit-multicolored-coral-shot-with-fish-projections-4020.mp4", "frame_idx": "0:513",
    "cap": "The video presents a continuous exploration of a vibrant underwater coral environment,...",
}  # fmt: skip
V12 = {
    "path": "panda70m_part_5565/qLqjjDhhD5Q/qLqjjDhhD5Q_segment_0.mp4",
    "cap": ["A man and a woman are sitting down on a news anchor talking to each other."],
    "resolution": {"height": 720, "width": 1280}, "fps": 29.97002997002997, "duration": 11.444767,
}  # fmt: skip
V13 = {
    **V12, "path": "panda/x.mp4", "num_frames": 289, "aesthetic": 5.1, "cut": [10, 299], "crop": [0, 1280, 20, 700],
    "tech": 0.4, "motion": 0.02,
}  # fmt: skip
BAD_CROPS = ([1], "0,1,2,3", [0, 8.5, 0, 8], [8, 0, 0, 8], [-1, 8, 0, 8], [0, 8, True, 9], {"x": 1})
IMAGE = {"path": "sam/sa_1.jpg", "cap": ["a harbour at dusk"], "resolution": {"height": 1024, "width": 1500}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(root: Path, rows: list[dict[str, object]], name: str = "anno.json", media: str = "all") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(rows))
    for row in rows:
        path = root / media / str(row.get("path"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"any bytes")
    return root


def listing(root: Path, **config: object) -> SourceListing:
    sets = [{"annotation": "anno.json", "media": "all"}]
    return scan(OpenSoraPlanConfig.model_validate({"sets": sets, **config}), Storage(str(root)))


def test_rows_of_every_version(tmp_path: Path) -> None:
    found = listing(make(tmp_path / "root", [V11, V12, V13, IMAGE]))
    assert found.rejected == []
    assert [(f.path, f.media, f.first_frame, f.last_frame) for f in found.files] == [
        (f"all/{V11['path']}", "video", 0, 512),
        (f"all/{V12['path']}", "video", None, None),
        ("all/panda/x.mp4", "video", 10, 298),
        ("all/sam/sa_1.jpg", "image", None, None),
    ]
    assert [len(f.captions) for f in found.files] == [1] * 4
    second, third, image = found.files[1:]
    assert (second.width, second.height, second.fps) == (1280, 720, 29.97002997002997)
    assert second.duration_s == 11.444767
    assert third.extra == {
        "aesthetic": 5.1, "tech": 0.4, "motion": 0.02, "crop": [0, 20, 1280, 700], "frames_claimed": 289,
    }  # fmt: skip
    assert (image.width, image.height) == (1500, 1024)


def test_spans_of_one_file_stay_apart_through_the_artifact(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "a.mp4", "frame_idx": "65:130", "cap": "second"},
        {"path": "b.mp4", "frame_idx": "0:65", "cap": "other"},
        {"path": "a.mp4", "frame_idx": "0:65", "cap": ["first", "first again"]},
        {"path": "a.mp4", "frame_idx": "65:130", "cap": "second, said otherwise"},
        {"path": "a.mp4", "frame_idx": "65:130", "cap": "second"},
    ]
    root = make(tmp_path / "root", rows)
    sets = [{"annotation": "anno.json", "media": "all"}]
    reader = SourceReader(publish(tmp_path / "work", {"kind": "opensora_plan", "sets": sets}, root))
    assert [(f.path, f.first_frame, f.last_frame, [c.text for c in f.captions]) for f in reader.files()] == [
        ("all/a.mp4", 0, 64, ["first", "first again"]),
        ("all/a.mp4", 65, 129, ["second", "second, said otherwise"]),
        ("all/b.mp4", 0, 64, ["other"]),
    ]
    assert (reader.facts.counts["rows"], reader.facts.counts["repeated_rows"]) == (5, 1)


def test_launch_file_names_the_sets(tmp_path: Path) -> None:
    root = make(tmp_path / "root", [V11], "anno_jsons/mixkit.json", "all_mixkit")
    make(root, [V12], "anno_jsons/panda.json", "panda70m")
    (root / "merge_data.txt").write_text(
        f"all_mixkit,anno_jsons/mixkit.json\n\n{root}/panda70m, text_embeddings, {root}/anno_jsons/panda.json\n"
    )
    found = scan(OpenSoraPlanConfig(), Storage(str(root)))
    assert [f.path for f in found.files] == [f"all_mixkit/{V11['path']}", f"panda70m/{V12['path']}"]
    (root / "merge_data.txt").write_text("/elsewhere/videos,anno_jsons/mixkit.json\n")
    with pytest.raises(InputError, match=r"not a relative path.*merge_data.txt line 1.*write it relative"):
        scan(OpenSoraPlanConfig(), Storage(str(root)))


def test_nasty_rows(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"path": "../up.mp4", "cap": "x"},
        {"path": "/etc/x.mp4", "cap": "x"},
        {"cap": "x"},
        {"path": "a.mp4", "frame_idx": "9:3", "cap": "x"},
        {"path": "a.mp4", "cut": [0.5, 3], "cap": "x"},
        {"path": "a.mp4", "cut": [3], "cap": "x"},
        {"path": "a.exe", "cap": "x"},
        {"path": "nowhere.mp4", "cap": "x"},
        {"path": "a.mp4", "cap": None},
        {"path": "a.mp4", "cap": ["​", "fine"], "cut": [0, 9], "aes": True, "fps": "nan"},
        {"path": "A.mp4", "cap": "differs in case only", "duration": -3},
        {"path": "a.mp4", "cap": "fine too", "cut": [0, 9], "crop": [0, 8, 0, 8]},
        *({"path": "a.mp4", "cap": "x", "cut": [0, 5], "crop": crop} for crop in BAD_CROPS),
    ]
    root = make(tmp_path / "root", [r for r in rows if str(r.get("path")).lower() == "a.mp4"])
    (root / "anno.json").write_text(json.dumps(rows))
    found = listing(root)
    assert [(r.row, r.reason) for r in found.rejected] == [
        (1, "unsafe_name"), (2, "unsafe_name"), (3, "bad_row"), (4, "bad_range"), (5, "bad_range"), (6, "bad_range"),
        (7, "bad_row"), *((13 + n, "bad_crop") for n in range(len(BAD_CROPS))), (8, "missing_file"),
        (9, "missing_caption"), (12, "conflicting_crop"), (10, "missing_caption"),
    ]  # fmt: skip
    assert all("byte" in r.detail for r in found.rejected)
    assert [(f.path, f.last_frame, f.fps, f.duration_s, f.extra) for f in found.files] == [
        ("all/a.mp4", 8, None, None, {}), ("all/A.mp4", None, None, None, {}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({"min_aesthetic": 5}, ["x"]), ({"max_motion": 0.01}, []), ({"min_technical": 0.3, "min_motion": 0.01}, ["x"])],
)
def test_scores_choose_rows(tmp_path: Path, bounds: dict[str, float], kept: list[str]) -> None:
    found = listing(make(tmp_path / "root", [V12, V13]), **bounds)
    assert [Path(f.path).stem for f in found.files] == kept
    assert found.counts["filtered_by_scores"] == 2 - len(kept)


def test_collection_level_errors_name_the_fix(tmp_path: Path) -> None:
    make(tmp_path / "root", [V11])
    with pytest.raises(InputError, match=r"no launch file and no sets.*add sets"):
        scan(OpenSoraPlanConfig(), Storage(str(tmp_path / "root")))
    with pytest.raises(InputError, match="pickle file can run code"):
        listing(tmp_path / "root", sets=[{"annotation": "anno.pkl"}])
    with pytest.raises(InputError, match="annotation file does not exist"):
        listing(tmp_path / "root", sets=[{"annotation": "none.json"}])


def items(text: str | bytes) -> list[tuple[object, ...]]:
    data = text if isinstance(text, bytes) else text.encode()
    return [
        ("rejected", item.row, item.reason)
        if isinstance(item, Rejected)
        else (item.row, item.offset, dict(item.fields))
        for item in read_json_array(io.BytesIO(data), "t")
    ]


def test_array_parser_gives_byte_offsets_and_goes_on_after_damage() -> None:
    assert items('\ufeff [\n{"a": "é"} , {"b": 2}]') == [(1, 6, {"a": "é"}), (2, 20, {"b": 2})]
    assert items('[{"a": 1}, {"b" 2}, {"c": 3}]') == [(1, 1, {"a": 1}), ("rejected", 2, "bad_row"), (3, 20, {"c": 3})]
    assert items(b'[{"a": "\xff!"}, {"b": 1}]') == [(1, 1, {"a": "\ufffd!"}), (2, 14, {"b": 1})]
    assert items('[{"a": 1}, {"b": ') == [(1, 1, {"a": 1}), ("rejected", 2, "bad_row"), ("rejected", None, "bad_table")]
    assert items('[7, {"a": 1}]')[0] == ("rejected", 1, "bad_row")
    assert items('{"a": 1}') == items("") == items("<html>") == [("rejected", None, "bad_table")]
    assert items("[]") == []
    assert items("[" * 100_000)[0] == ("rejected", 1, "bad_row")


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_array_parser_does_not_depend_on_where_reads_end(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rows = [{"p": f'ü{n}\\"}}, {{', "n": n, "d": [1.5, {"x": None}]} for n in range(30)]
    text = json.dumps(rows, ensure_ascii=False)
    whole = items(text)
    monkeypatch.setattr("dataprep.sources.json_stream.CHUNK_BYTES", chunk)
    assert items(text) == whole
    assert [i[2] for i in whole] == rows
    for _, offset, fields in whole:
        assert isinstance(offset, int)
        raw = text.encode()[offset:].decode()
        assert json.JSONDecoder().raw_decode(raw)[0] == fields


class _Endless(io.RawIOBase):
    """A JSON array of `count` rows made while it is read."""

    def __init__(self, count: int) -> None:
        self._rows = self._make(count)
        self._rest = b""
        self.total = 0

    def _make(self, count: int) -> Iterator[bytes]:
        yield b"["
        for n in range(count):
            yield json.dumps({"path": f"part/{n}.mp4", "cap": ["a caption of the usual length " * 20]}).encode()
            yield b"," if n + 1 < count else b"]"

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._rest], len(self._rest)
        for part in self._rows:
            parts.append(part)
            length += len(part)
            if length >= size:
                break
        data = b"".join(parts)
        self._rest = data[size:]
        self.total += len(data[:size])
        return data[:size]


def test_an_array_of_any_length_takes_a_few_megabytes() -> None:
    stream = _Endless(25_000)
    tracemalloc.start()
    rows = sum(isinstance(item, Record) for item in read_json_array(stream, "t"))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 25_000
    assert stream.total > 15 << 20
    assert peak < 8 << 20


def test_grouping_takes_little_memory_and_keeps_order() -> None:
    tracemalloc.start()
    with SpanGroups() as groups:
        for n in range(20_000):
            groups.add(SpanRow(f"{n % 7_000}.mp4", n // 7_000, None, {"n": n, "text": "x" * 300}))
        spans = [(g[0].path, g[0].first) for g in groups.spans()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(spans) == 20_000
    assert spans[:4] == [("0.mp4", 0), ("0.mp4", 1), ("0.mp4", 2), ("1.mp4", 0)]
    assert peak < 6 << 20


def test_key_set() -> None:
    keys = KeySet()
    assert [keys.add(k) for k in (0, 5, 5, 1 << 63, 0)] == [True, True, False, True, False]
    assert all(keys.add(n * 0x9E3779B97F4A7C15 % (1 << 64)) for n in range(10, 5000))
    assert not any(keys.add(n * 0x9E3779B97F4A7C15 % (1 << 64)) for n in range(10, 5000))
    assert len(keys) == 3 + 4990
