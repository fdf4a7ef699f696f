import io
from pathlib import Path

import curation_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import make_tar
from PIL import Image
from source_runs import publish

from dataprep.sources import scan
from dataprep.sources.config import LaionConfig
from dataprep.sources.laion import image_path
from dataprep.sources.listing import SourceListing, SourceReader
from m4v.core.errors import InputError
from m4v.core.storage import Storage

URL = "https://cdn.example.com/photos/{}.jpg?w=1900"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def columns(count: int) -> dict[str, pa.Array]:
    """Columns and types of laion2B-en-aesthetic."""
    return {
        "URL": pa.array([URL.format(n) for n in range(count)]),
        "TEXT": pa.array(["Photo : Marion Gotti", *(f"picture {n}" for n in range(1, count))]),
        "WIDTH": pa.array([1900.0 - n for n in range(count)], pa.float64()),
        "HEIGHT": pa.array([1266.0] * count, pa.float64()),
        "similarity": pa.array([0.2 + n / 10 for n in range(count)], pa.float64()),
        "hash": pa.array(list(range(count)), pa.int64()),
        "punsafe": pa.array([n / 4 for n in range(count)], pa.float32()),
        "pwatermark": pa.array([0.154278] * count, pa.float32()),
        "aesthetic": pa.array([5.0 + n for n in range(count)], pa.float32()),
    }


def write(root: Path, data: dict[str, pa.Array], name: str = "part-00000.snappy.parquet") -> None:
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(data), root / name)


def image(root: Path, path: str, data: bytes = b"an image") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def listing(root: Path, **config: object) -> SourceListing:
    return scan(LaionConfig.model_validate(config), Storage(str(root)))


def variants() -> list[dict[str, pa.Array]]:
    base = columns(3)
    whole = {**base, "WIDTH": base["WIDTH"].cast(pa.int32()), "HEIGHT": base["HEIGHT"].cast(pa.int32())}
    art = {**whole, "LANGUAGE": pa.array(["en", "en", "fr"])}
    v2 = {k: v for k, v in base.items() if k != "aesthetic"}
    v2["AESTHETIC_SCORE"] = base["aesthetic"].cast(pa.float64())
    return [base, whole, art, v2]


@pytest.mark.parametrize("variant", range(4))
def test_every_published_variant(tmp_path: Path, variant: int) -> None:
    write(tmp_path, variants()[variant])
    for n in range(3):
        image(tmp_path, image_path(URL.format(n)))
    found = listing(tmp_path)
    assert found.rejected == []
    first = found.files[0]
    assert (first.path, first.media, first.source_id) == (image_path(URL.format(0)), "image", URL.format(0))
    assert (first.width, first.height, [c.text for c in first.captions]) == (1900, 1266, ["Photo : Marion Gotti"])
    assert (first.extra["aesthetic"], first.extra["hash"], first.extra["similarity"]) == (5.0, 0, 0.2)
    assert first.extra["pwatermark"] == pytest.approx(0.154278)
    assert first.extra.get("language") == ("en" if variant == 2 else None)


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [({"min_aesthetic": 6}, [1, 2]), ({"max_unsafe": 0.3}, [0, 1]), ({"max_watermark": 0.1}, []),
     ({"min_similarity": 0.35}, [2]), ({"min_side": 1266}, [0, 1, 2]), ({"min_side": 1267}, []), ({"limit": 1}, [0])],
)  # fmt: skip
def test_scores_choose_rows(tmp_path: Path, bounds: dict[str, float], kept: list[int]) -> None:
    write(tmp_path, columns(3))
    for n in range(3):
        image(tmp_path, image_path(URL.format(n)))
    assert [f.extra["hash"] for f in listing(tmp_path, **bounds).files] == kept


def test_nasty_rows_and_wanted_images(tmp_path: Path) -> None:
    data = columns(8)
    urls = [
        URL.format(0),
        URL.format(0),
        None,
        "file:///etc/passwd",
        "http://10.0.0.1/a.png",
        "http://[bad",
        "",
        URL.format(7),
    ]
    data["URL"] = pa.array(urls)
    data["TEXT"] = pa.array(["fine", "again", "x", "x", "x", "x", "x", None])
    data["WIDTH"] = pa.array([float("nan"), None, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    write(tmp_path / "root", data)
    image(tmp_path / "root", image_path(URL.format(0)))
    reader = SourceReader(publish(tmp_path / "work", {"kind": "laion"}, tmp_path / "root"))
    assert [(r.row, r.reason) for r in reader.rejected()] == [
        (2, "duplicate_id"), (3, "bad_row"), (4, "unsafe_url"), (5, "unsafe_url"), (6, "unsafe_url"), (7, "bad_row"),
        (8, "missing_caption"),
    ]  # fmt: skip
    (file,) = reader.files()
    assert file.width is None
    write(tmp_path / "other", columns(2))
    found = listing(tmp_path / "other")
    assert [r.wanted.url for r in found.rejected if r.wanted] == [URL.format(0), URL.format(1)]
    assert [r.path for r in found.rejected] == [image_path(URL.format(0)), image_path(URL.format(1))]


def test_collection_level_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Parquet table found"):
        listing(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"<html>no such file</html>")
    with pytest.raises(InputError, match="Parquet table cannot be read"):
        listing(tmp_path)
    write(tmp_path, {"a": pa.array([1])}, "a.parquet")
    with pytest.raises(InputError, match="no columns URL and TEXT"):
        listing(tmp_path)


def shard(status: list[str]) -> dict[str, pa.Array]:
    """What img2dataset writes beside a shard, with score columns kept."""
    count = len(status)
    return {
        "url": pa.array([URL.format(n) for n in range(count)]),
        "caption": pa.array([f"picture {n}" for n in range(count)]),
        "key": pa.array([f"00000{n:04d}" for n in range(count)]),
        "status": pa.array(status),
        "error_message": pa.array([None if s == "success" else "HTTP Error 404: Not Found" for s in status]),
        "width": pa.array([256] * count), "height": pa.array([128] * count),
        "original_width": pa.array([1900] * count), "original_height": pa.array([1266] * count),
        "exif": pa.array(["{}"] * count), "sha256": pa.array(["0" * 64] * count),
        "aesthetic": pa.array([6.5] * count),
    }  # fmt: skip


def test_output_of_img2dataset_as_folders(tmp_path: Path) -> None:
    write(tmp_path, shard(["success", "failed_to_download", "success", "success"]), "00000.parquet")
    image(tmp_path, "00000/000000000.jpg")
    image(tmp_path, "00000/000000002.webp")
    found = listing(tmp_path)
    assert [(f.path, f.source_id, f.extra["aesthetic"]) for f in found.files] == [
        ("00000/000000000.jpg", "00000/000000000", 6.5), ("00000/000000002.webp", "00000/000000002", 6.5),
    ]  # fmt: skip
    assert [(r.row, r.reason) for r in found.rejected] == [(2, "not_downloaded"), (4, "missing_file")]
    assert "HTTP Error 404" in found.rejected[0].detail


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(np.kron(noise, np.ones((8, 8, 1), dtype=np.uint8))).save(out, "JPEG", quality=95)
    return out.getvalue()


def test_output_of_img2dataset_as_shards_goes_through_curate(tmp_path: Path) -> None:
    root = tmp_path / "laion"
    write(root, shard(["success", "success"]), "00000.parquet")
    members = [(f"00000{n:04d}.{kind}", data) for n in range(2) for kind, data in (("jpg", picture(n)), ("txt", b"x"))]
    make_tar(root / "00000.tar", [*members, ("../up.jpg", b"x")])
    listed = curation_runs.list_source(tmp_path / "1", "laion", root, {"kind": "laion", "min_aesthetic": 6})
    made = curation_runs.context(
        tmp_path / "2", "curate", curation_runs.CHEAP, curation_runs.inputs(listed), {"laion": str(root)}
    )
    found = curation_runs.curated(made)
    assert [(c["path"], c["captions"], c["media"]) for c in found.kept()] == [
        (f"00000.tar!/00000{n:04d}.jpg", [f"picture {n}"], "image") for n in range(2)
    ]
    assert found.reasons() == {"up.jpg": "unsafe_member"}
