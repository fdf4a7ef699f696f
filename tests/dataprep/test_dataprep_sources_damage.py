"""Damaged tables and archives: whatever the bytes, a scan ends with rows, rejections or one clear error."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import make_tar, make_zip
from pydantic import TypeAdapter
from source_runs import publish

from dataprep.sources import scan
from dataprep.sources.config import AdapterConfig
from dataprep.sources.listing import ListingWriter, SourceReader
from dataprep.sources.openvid import COLUMNS
from m4v.core.errors import M4VError
from m4v.core.storage import Storage

CONFIGS: TypeAdapter[AdapterConfig] = TypeAdapter(AdapterConfig)
ROUNDS = 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def table(rows: list[list[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def webvid(root: Path) -> Path:
    rows = [[str(n), f"https://example.com/{n}.mp4", "PT00H00M30S", "p", f'a "cat", number {n}'] for n in range(9)]
    (root / "results_x.csv").write_bytes(table([["videoid", "contentUrl", "duration", "page_dir", "name"], *rows]))
    return root / "results_x.csv"


def opensora(root: Path) -> Path:
    rows = [{"path": f"{n}.mp4", "frame_idx": "0:65", "cap": [f"é {n}"], "cut": [n, 99], "fps": 3e1} for n in range(9)]
    (root / "a.json").write_text(json.dumps(rows, ensure_ascii=False))
    return root / "a.json"


def pyramidflow(root: Path) -> Path:
    lines = [json.dumps({"video": f"{n}.mp4", "text": "a cat", "frames": [n, n + 1]}) for n in range(9)]
    (root / "a.jsonl").write_text("\n".join(lines))
    return root / "a.jsonl"


def laion(root: Path) -> Path:
    data = {"URL": [f"https://example.com/{n}.jpg" for n in range(9)], "TEXT": ["a cat"] * 9, "WIDTH": [1.5] * 9}
    pq.write_table(pa.table(data), root / "a.parquet")
    return root / "a.parquet"


def shard(root: Path) -> Path:
    return make_tar(root / "a.tar", [(f"{n}.{k}", b"x" * 700) for n in range(4) for k in ("mp4", "txt", "json")])


def archive(root: Path) -> Path:
    rows = [[f"{n}.mp4", "a cat", "5", "1", "1", "static", "64", "24", "2.6"] for n in range(4)]
    (root / "o.csv").write_bytes(table([list(COLUMNS), *rows]))
    return make_zip(root / "a.zip", {f"{n}.mp4": b"x" * 300 for n in range(4)})


def metadata(root: Path) -> Path:
    (root / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{n}.mp4", "text": "x", "seed": {n}}}\n' for n in range(9))
    )
    return root / "metadata.jsonl"


CASES: dict[str, tuple[Callable[[Path], Path], dict[str, object]]] = {
    "webvid": (webvid, {"kind": "webvid"}),
    "opensora_plan": (opensora, {"kind": "opensora_plan", "sets": [{"annotation": "a.json"}]}),
    "pyramidflow": (pyramidflow, {"kind": "pyramidflow"}),
    "laion": (laion, {"kind": "laion"}),
    "webdataset": (shard, {"kind": "webdataset"}),
    "openvid": (archive, {"kind": "openvid", "csv": ["o.csv"], "archives": ["a.zip"], "identity": "full"}),
    "generated": (metadata, {"kind": "generated"}),
}


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut out, doubled, or the end cut off."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, length = draw.randrange(len(out)), draw.choice((1, 1, 4, 60))
        match draw.randrange(5):
            case 0:
                out[at : at + length] = draw.randbytes(length)
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                out[at : at + 1] = draw.choice(
                    (b'"', b"\\", b"{", b"}", b"[", b",", b"\n", b"\0", b"\xff", b"9" * 30, b"\\ud800")
                )
            case _:
                del out[max(at, 1) :]
        if not out:
            return b"\0"
    return bytes(out)


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_scan_survives_any_bytes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    make, adapter = CASES[kind]
    for n in range(9):
        (tmp_path / f"{n}.mp4").write_bytes(b"x")
    path = make(tmp_path)
    whole, config = path.read_bytes(), CONFIGS.validate_python(adapter)
    intact = scan(config, Storage(str(tmp_path)))
    assert intact.files or intact.rejected
    outcomes = set()
    out = tmp_path_factory.mktemp("out")
    for seed in range(ROUNDS):
        path.write_bytes(damaged(whole, random.Random(f"{kind}-{seed}")))
        try:
            found = scan(config, Storage(str(tmp_path)))
            with ListingWriter(out) as writer:
                for entry in (*found.files, *found.rejected):
                    writer.add(entry)
            found.digest()
        except M4VError as error:
            outcomes.add("error" if "\n" not in str(error) else "error of several lines")
            continue
        outcomes.add("rejected" if len(found.rejected) > len(intact.rejected) else "listed")
        assert all(0 <= (f.first_frame or 0) <= (f.last_frame or 1 << 60) for f in found.files)
    assert len(outcomes) >= 2
    assert outcomes <= {"error", "rejected", "listed"}


def test_half_characters_and_huge_numbers_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    lines = [
        r'{"video": "a.mp4", "text": "half \ud800 a character", "latent": "l\udfff.pt"}',
        r'{"video": "a\ud800.mp4", "text": "x"}',
        r'{"video": "a.mp4", "text": "x", "frames": [0, 99999999999999999999999]}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    reader = SourceReader(publish(tmp_path / "work", {"kind": "pyramidflow"}, tmp_path))
    (file,) = reader.files()
    assert file.captions[0].text == "half a character"
    assert file.extra == {"latent": "l\udfff.pt"}
    assert [(r.row, r.reason) for r in reader.rejected()] == [(2, "unsafe_name"), (3, "bad_range")]
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.json").write_text('{"caption": "x", "width": 9e10, "fps": 1e400, "licence": "\\ud800"}')
    (file,) = SourceReader(publish(tmp_path / "work2", {"kind": "folder"}, tmp_path)).files()
    assert (file.width, file.fps, file.licence) == (None, None, "\\ud800")
