import csv
import io
from pathlib import Path

import pytest

from dataprep.sources import probe, scan
from dataprep.sources.config import OpenVidConfig, SourceConfig
from dataprep.sources.digests import sampled_digest
from dataprep.sources.openvid import COLUMNS
from m4v.core.errors import InputError
from m4v.core.storage import Storage

# Rows as the published CSV has them (captions shortened); the second id begins with dashes.
ROWS = [
    [
        *("pixabay_Beautiful_Islands_141367_025.mp4", 'a breathtaking scene, "nature\'s" grandeur.'),
        *("5.567502", "0.048855", "0.999089", "static", "64", "24", "2.666667"),
    ],
    [
        *("---_iRTHryQ_13_0to241.mp4", "two adventurers\nin a verdant forest"),
        *("5.426848", "17.168211", "0.993587", "pan_right", "241", "24", "10.04"),
    ],
    ["celebv_x.mp4", "a person talks", "7.1", "2.5", "0.99", "static", "80", "25.0", "3.2"],
]


def make(root: Path, rows: list[list[str]], extra: str = "", files: bool = True) -> Path:
    (root / "data/train").mkdir(parents=True, exist_ok=True)
    (root / "video").mkdir(exist_ok=True)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([list(COLUMNS), *rows])
    (root / "data/train/OpenVid-1M.csv").write_text(out.getvalue() + extra)
    for row in rows if files else []:
        (root / "video" / row[0]).write_bytes(row[0].encode())
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "openvid").mkdir()
    return tmp_path / "openvid"


def test_rows_become_files_with_their_scores(root: Path) -> None:
    found = scan(OpenVidConfig(licence="CC-BY-4.0"), Storage(str(make(root, ROWS))))
    assert found.rejected == []
    assert [f.source_id for f in found.files] == [r[0] for r in ROWS]
    second = found.files[1]
    assert second.path == "video/---_iRTHryQ_13_0to241.mp4"
    assert second.captions[0].text == "two adventurers in a verdant forest"
    assert (second.fps, second.duration_s, second.licence) == (24.0, 10.04, "CC-BY-4.0")
    assert second.extra == {
        "aesthetic_score": 5.426848, "motion_score": 17.168211, "temporal_consistency_score": 0.993587,
        "camera_motion": "pan_right", "frames_claimed": 241.0,
    }  # fmt: skip


def test_every_bad_row_is_rejected_with_row_and_byte(root: Path) -> None:
    bad = [
        ROWS[0],
        [*ROWS[0][:1], "again", *ROWS[0][2:]],
        ["../up.mp4", *ROWS[1][1:]],
        ["sub/x.mp4", *ROWS[1][1:]],
        ["score.mp4", "x", "high", *ROWS[1][3:]],
        ["nan.mp4", "x", "nan", *ROWS[1][3:]],
        ["blank.mp4", " ", *ROWS[1][2:]],
        ["absent.mp4", *ROWS[1][1:]],
        ["claims.mp4", "claims that make no sense", "5", "1", "1", "static", "-3", "nan", "PT0H"],
    ]
    make(root, bad, "only,three,fields\n", files=False)
    for name in (ROWS[0][0], "claims.mp4", "blank.mp4", "without-a-row.mp4"):
        (root / "video" / name).write_bytes(b"x")
    (root / "video/hollow.mp4").touch()
    found = scan(OpenVidConfig(), Storage(str(root)))
    assert [(r.row, r.reason) for r in found.rejected] == [
        (2, "duplicate_id"), (3, "unsafe_name"), (4, "unsafe_name"), (5, "bad_row"), (6, "bad_row"),
        (7, "missing_caption"), (8, "missing_file"), (10, "bad_row"),
    ]  # fmt: skip
    assert all("byte" in r.detail for r in found.rejected)
    assert "aesthetic score 'high' is no number" in found.rejected[3].detail
    assert [(f.source_id, f.fps, f.duration_s) for f in found.files][1:] == [("claims.mp4", None, None)]
    assert found.counts == {"rows": 10, "files_without_row": 3}


def test_empty_files_and_folders_are_no_clips(root: Path) -> None:
    make(root, ROWS)
    (root / "video" / ROWS[0][0]).write_bytes(b"")
    (root / "video" / ROWS[2][0]).unlink()
    (root / "video" / ROWS[2][0]).mkdir()
    found = scan(OpenVidConfig(), Storage(str(root)))
    assert [(r.row, r.reason) for r in found.rejected] == [(1, "empty"), (3, "missing_file")]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"min_aesthetic": 5.5}, [0, 2]),
        ({"min_motion": 1.0, "max_motion": 10.0}, [2]),
        ({"min_temporal_consistency": 0.995}, [0]),
        ({"camera_motion": ("pan_right",)}, [1]),
        ({"limit": 1}, [0]),
    ],
)
def test_scores_choose_rows(root: Path, bounds: dict[str, object], kept: list[int]) -> None:
    found = scan(OpenVidConfig.model_validate(bounds), Storage(str(make(root, ROWS))))
    assert [f.source_id for f in found.files] == [ROWS[i][0] for i in kept]
    assert found.counts["filtered_by_scores"] + found.counts["over_limit"] == 3 - len(kept)


def test_collection_level_errors_name_the_fix(root: Path) -> None:
    with pytest.raises(InputError, match="folder of unpacked videos does not exist"):
        scan(OpenVidConfig(), Storage(str(root)))
    (root / "video").mkdir()
    with pytest.raises(InputError, match=r"CSV does not exist.*set `csv`"):
        scan(OpenVidConfig(), Storage(str(root)))
    make(root, ROWS)
    (root / "other.csv").write_text("video,caption\na.mp4,x\n")
    with pytest.raises(InputError, match=r"lacks the columns aesthetic score, .*its columns are video, caption"):
        scan(OpenVidConfig(csv=("other.csv",)), Storage(str(root)))
    with pytest.raises(InputError, match="collection directory does not exist"):
        scan(OpenVidConfig(), Storage(str(root / "nowhere")))


def test_probe_sees_rows_and_files(root: Path) -> None:
    config = SourceConfig(name="open", adapter=OpenVidConfig())
    make(root, ROWS)
    first = probe(config, {"open": str(root)})
    assert probe(config, {"open": str(root)}) == first
    (root / "video/new.mp4").write_bytes(b"x")
    second = probe(config, {"open": str(root)})
    make(root, ROWS[:2], files=False)
    assert len({first, second, probe(config, {"open": str(root)})}) == 3


def test_sampled_digest_sees_size_ends_and_middle(tmp_path: Path) -> None:
    data = bytearray(3 << 20)
    path = tmp_path / "x"

    def digest() -> str:
        path.write_bytes(data)
        return sampled_digest(path)

    seen = {digest()}
    for place in (0, len(data) - 1, (len(data) - (64 << 10)) // 15 * 7 + 100):
        data[place] ^= 1
        seen.add(digest())
    data.append(0)
    seen.add(digest())
    assert len(seen) == 5
    assert digest() == digest()
