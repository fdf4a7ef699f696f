import csv
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import curation_runs
import nasty
import pytest
from archive_files import make_tar, make_zip, served, special, split
from source_runs import publish

from dataprep.sources import probe, scan
from dataprep.sources.archives import copy_member, member_path, split_path
from dataprep.sources.config import OpenVidConfig, SourceConfig, WebDatasetConfig, WebVidConfig
from dataprep.sources.listing import SourceListing, SourceReader
from dataprep.sources.openvid import COLUMNS
from dataprep.sources.tar_index import TarError, TarMember, tar_members
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage

NAMES = ["---_iRTHryQ_13_0to241.mp4", "pexels_b.mp4", "celebv_c.mp4", "mixkit_d.mp4"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def openvid(root: Path, names: list[str] = NAMES) -> Path:
    """A CSV and two archives, the second in three parts; videos lie in folders that differ."""
    out = io.StringIO()
    rows = [[name, f"caption of {name}", "5.5", "1.5", "0.99", "static", "64", "24", "2.67"] for name in names]
    csv.writer(out, lineterminator="\n").writerows([list(COLUMNS), *rows])
    (root / "data/train").mkdir(parents=True)
    (root / "data/train/OpenVid-1M.csv").write_text(out.getvalue())
    make_zip(root / "OpenVid_part0.zip", {NAMES[0]: b"zero" * 5000, f"videos/{NAMES[1]}": b"one" * 7000})
    make_zip(root / "OpenVid_part73.zip", {f"x/y/{NAMES[2]}": b"two" * 9000}, zipfile.ZIP_DEFLATED)
    split(root / "OpenVid_part73.zip", 3)
    return root


def listing(root: Path | str, **config: object) -> SourceListing:
    given = {"archives": ["OpenVid_part*"], **config}
    return scan(OpenVidConfig.model_validate(given), Storage(str(root)))


def test_videos_are_found_in_whole_and_split_archives(tmp_path: Path) -> None:
    found = listing(openvid(tmp_path))
    assert [(f.path, f.size_bytes, f.source_id) for f in found.files] == [
        (f"OpenVid_part0.zip!/{NAMES[0]}", 20000, NAMES[0]),
        (f"OpenVid_part0.zip!/videos/{NAMES[1]}", 21000, NAMES[1]),
        (f"OpenVid_part73.zip!/x/y/{NAMES[2]}", 27000, NAMES[2]),
    ]
    assert [(r.path, r.reason) for r in found.rejected] == [(NAMES[3], "missing_file")]
    assert found.counts == {"rows": 4, "archives": 2, "files_without_row": 0}
    full = listing(tmp_path, identity="full", archives=["OpenVid_part0.zip", "OpenVid_part73_partaa"])
    assert [f.path for f in full.files] == [f.path for f in found.files]
    for file in full.files:
        copy_member(Storage(str(tmp_path)), file.path, tmp_path / "out" / "copy")
        assert Storage(str(tmp_path)).digest("out/copy") == file.sha256
    assert (tmp_path / "out" / "copy").read_bytes() == b"two" * 9000


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    openvid(tmp_path)
    (tmp_path / "OpenVid_part73_partac").unlink()
    with pytest.raises(InputError, match=r"no readable directory.*partaa, .*partab: is a later one missing"):
        listing(tmp_path)
    (tmp_path / "OpenVid_part73_partac").write_bytes(b"x")
    (tmp_path / "OpenVid_part73_partab").unlink()
    with pytest.raises(InputError, match=r"a part of a split archive is missing: 'OpenVid_part73_partab'"):
        listing(tmp_path)
    with pytest.raises(InputError, match=r"archive does not exist: 'OpenVid_part9.zip'"):
        listing(tmp_path, archives=["OpenVid_part9.zip"])


def test_only_directories_are_read_over_http(tmp_path: Path) -> None:
    openvid(tmp_path, NAMES[:1])
    make_zip(tmp_path / "OpenVid_part1.zip", {"large.mp4": bytes(40 << 20), "last.mp4": b"last" * 100})
    with served(tmp_path) as server:
        found = listing(server.url, archives=["OpenVid_part{0..1}.zip", "OpenVid_part73.zip"])
        assert [f.path for f in found.files] == [f"OpenVid_part0.zip!/{NAMES[0]}"]
        assert found.counts["files_without_row"] == 4
        assert server.total < 8 << 20
        config = SourceConfig(name="o", adapter=OpenVidConfig(archives=("OpenVid_part0.zip",)))
        assert probe(config, {"o": server.url}) == probe(config, {"o": server.url})
        server.sent.clear()
        storage = Storage(server.url)
        copy_member(storage, "OpenVid_part1.zip!/last.mp4", tmp_path / "last")
        assert (tmp_path / "last").read_bytes() == b"last" * 100
        copy_member(storage, f"OpenVid_part73.zip!/x/y/{NAMES[2]}", tmp_path / "third")
        assert (tmp_path / "third").read_bytes() == b"two" * 9000
        assert server.total < 8 << 20


def test_remote_collections_are_listed_and_read(tmp_path: Path, s3_root: str) -> None:
    openvid(tmp_path / "ov", NAMES[:3])
    make_tar(tmp_path / "ov" / "wds" / "0.tar", SHARD)
    (tmp_path / "ov" / "results_x.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n1,https://example.com/1.mp4,PT3S,p,a cat\n2,,PT3S,p,a dog\n"
    )
    (tmp_path / "ov" / "part0" / "p").mkdir(parents=True)
    (tmp_path / "ov" / "part0" / "p" / "1.mp4").write_bytes(b"a video")
    remote = Storage(s3_root)
    for path in sorted((tmp_path / "ov").rglob("*")):
        if path.is_file():
            remote.put_file(path, path.relative_to(tmp_path / "ov").as_posix())
    local = Storage(str(tmp_path / "ov"))
    for config in (
        OpenVidConfig(archives=("OpenVid_part*",)),
        OpenVidConfig(archives=("OpenVid_part*",), identity="full"),
        WebDatasetConfig(shards=("wds/*.tar",)),
        WebVidConfig(),
    ):
        there = scan(config, remote)
        assert there.digest() == scan(config, local).digest()
        assert there.files
    copy_member(remote, "wds/0.tar!/000/a.mp4", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"video a"
    source = SourceConfig(name="o", adapter=WebDatasetConfig())
    assert probe(source, {"o": s3_root}) == probe(source, {"o": s3_root})


def test_hd_list_chooses_rows(tmp_path: Path) -> None:
    openvid(tmp_path)
    (tmp_path / "OpenVidHD.json").write_text(json.dumps([{"part1": [NAMES[1]]}, {"part15": [NAMES[2], "other.mp4"]}]))
    found = listing(tmp_path, hd_list="OpenVidHD.json")
    assert [f.source_id for f in found.files] == NAMES[1:3]
    assert found.counts["not_in_hd_list"] == 2
    (tmp_path / "OpenVidHD.json").write_text('[{"part1": "a.mp4"}]')
    with pytest.raises(InputError, match=r"no list of file names.*part1"):
        listing(tmp_path, hd_list="OpenVidHD.json")


def test_hostile_zip_members_are_rejected(tmp_path: Path) -> None:
    openvid(tmp_path, ["a.mp4", "bomb.mp4", "link.mp4", "secret.mp4", "passwd.mp4"])
    path = tmp_path / "OpenVid_part5.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mp4", b"first")
        for name in ("../passwd.mp4", "/passwd.mp4", "C:/passwd.mp4", "b\\passwd.mp4"):
            archive.writestr(zipfile.ZipInfo(name), b"x")
        archive.writestr("bomb.mp4", bytes(4 << 20), zipfile.ZIP_DEFLATED)
        link = zipfile.ZipInfo("link.mp4")
        link.create_system, link.external_attr = 3, 0xA1FF << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("sub/a.mp4", b"other bytes")
        archive.writestr("same/a.mp4", b"first")
        archive.writestr("secret.mp4", b"secret")
        archive.writestr("folder/", b"")
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"secret.mp4") - 46
    data[entry + 8 : entry + 10] = struct.pack("<H", 1)  # encrypted
    path.write_bytes(data)
    found = listing(tmp_path, archives=["OpenVid_part5.zip"])
    assert [f.path for f in found.files] == ["OpenVid_part5.zip!/a.mp4"]
    assert sorted((r.path.partition("!/")[2], r.reason) for r in found.rejected if r.row is None) == [
        ("../passwd.mp4", "unsafe_member"), ("/passwd.mp4", "unsafe_member"), ("C:/passwd.mp4", "unsafe_member"),
        ("b\\passwd.mp4", "unsafe_member"), ("bomb.mp4", "unsafe_member"), ("link.mp4", "unsafe_member"),
        ("secret.mp4", "unsafe_member"), ("sub/a.mp4", "duplicate_member"),
    ]  # fmt: skip
    assert found.counts["members_twice"] == 1
    for name in ("bomb.mp4", "link.mp4", "secret.mp4"):
        with pytest.raises(DataIntegrityError, match="must not be read"):
            copy_member(Storage(str(tmp_path)), f"OpenVid_part5.zip!/{name}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_crc_and_size_are_checked_when_a_member_is_read(tmp_path: Path) -> None:
    openvid(tmp_path, NAMES[:2])
    path = tmp_path / "OpenVid_part0.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"onezerozero") if b"onezerozero" in data else data.index(b"oneone")] ^= 0xFF
    path.write_bytes(data)
    assert len(listing(tmp_path).files) == 2  # nothing is read
    with pytest.raises(DataIntegrityError, match="damaged: Bad CRC-32"):
        copy_member(Storage(str(tmp_path)), f"OpenVid_part0.zip!/videos/{NAMES[1]}", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []
    found = listing(tmp_path, identity="full")
    assert [(r.row, r.reason) for r in found.rejected] == [(2, "damaged_member")]


def test_member_paths() -> None:
    assert split_path(member_path("a/b.tar", "c/d!/e.mp4")) == ("a/b.tar", "c/d!/e.mp4")
    assert split_path("wow!/a.mp4") is None
    with pytest.raises(InputError, match="not ARCHIVE!/MEMBER"):
        copy_member(Storage("."), "a.mp4", Path("never"))


SHARD: list[tuple[str, bytes | tarfile.TarInfo]] = [
    ("000/a.mp4", b"video a"), ("000/a.txt", b"a caption & more"), ("000/a.json", b'{"fps": 24, "seed": 7, "x": [1]}'),
    ("b.one.jpg", b"image b"), ("b.json", b'{"caption": "from json", "license": "CC0-1.0", "width": 64, "height": 32}'),
    ("c.mp4", b"video c"), ("d.txt", b"only text"), ("e.mp4", b""), ("e.txt", b"nothing there"),
    ("f.cls", b"3"), ("g.webm", b"video g"), ("g.jpg", b"its still"), ("g.txt", b"\xff\xfe"), ("g.json", b"{broken"),
]  # fmt: skip


def shards(root: Path, **config: object) -> SourceListing:
    return scan(WebDatasetConfig.model_validate(config), Storage(str(root)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_are_listed_in_place(tmp_path: Path, form: int) -> None:
    make_tar(tmp_path / "train" / "00000.tar", SHARD, form)
    found = shards(tmp_path)
    first, second = found.files
    assert (first.path, first.media, first.size_bytes) == ("train/00000.tar!/000/a.mp4", "video", 7)
    assert [c.text for c in first.captions] == ["a caption & more"]
    assert (first.fps, first.extra) == (24, {"fps": 24, "seed": 7})
    assert (second.path, second.media, second.licence, second.width) == (
        "train/00000.tar!/b.one.jpg", "image", "CC0-1.0", 64,
    )  # fmt: skip
    assert [(r.path.partition("!/")[2], r.reason) for r in found.rejected] == [
        ("c.mp4", "missing_caption"), ("e.mp4", "empty"), ("g.json", "bad_row"), ("g.webm", "missing_caption"),
    ]  # fmt: skip
    assert found.counts == {"shards": 1, "keys_without_media": 2, "ignored": 2}
    copy_member(Storage(str(tmp_path)), first.path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"video a"
    assert Storage(str(tmp_path)).digest("out") == first.sha256
    assert [f.media for f in shards(tmp_path, media="image", require_captions=False).files] == ["image", "image"]
    assert len(shards(tmp_path, require_captions=False, identity="sampled").files) == 4


def test_hostile_tar_members_are_rejected(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | tarfile.TarInfo]] = [
        ("a.mp4", b"a"), ("a.txt", b"fine"),
        ("../up.mp4", b"x"), ("/abs.mp4", b"x"), ("C:x.mp4", b"x"), ("q\\w.mp4", b"x"),
        special("s.mp4", tarfile.SYMTYPE, "/etc/passwd"), special("h.mp4", tarfile.LNKTYPE, "a.mp4"),
        special("dev.mp4", tarfile.CHRTYPE), special("pipe.mp4", tarfile.FIFOTYPE), special("dir", tarfile.DIRTYPE),
        ("a.mp4", b"again"), ("\N{GRINNING FACE} x.mp4", b"emoji"), ("\N{GRINNING FACE} x.txt", b"an emoji"),
        ("n" * 200 + ".mp4", b"long"), ("n" * 200 + ".txt", b"a long name"),
    ]  # fmt: skip
    make_tar(tmp_path / "x.tar", members, tarfile.PAX_FORMAT)
    found = shards(tmp_path)
    assert [f.path.partition("!/")[2] for f in found.files] == [
        "a.mp4", "\N{GRINNING FACE} x.mp4", "n" * 200 + ".mp4",
    ]  # fmt: skip
    assert [(r.path.partition("!/")[2], r.reason) for r in found.rejected] == [
        *((name, "unsafe_member") for name in (
            "../up.mp4", "/abs.mp4", "C:x.mp4", "q\\w.mp4", "s.mp4", "h.mp4", "dev.mp4", "pipe.mp4")),
        ("a.mp4", "duplicate_member"),
    ]  # fmt: skip


def test_damaged_and_compressed_shards_lose_only_what_is_damaged(tmp_path: Path) -> None:
    data = make_tar(
        tmp_path / "whole.tar", [("a.mp4", b"a" * 2000), ("a.txt", b"a"), ("b.mp4", b"b" * 2000)]
    ).read_bytes()
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "cut.tar").write_bytes(data[: 512 + 2048 + 1024 + 512 + 100])
    (tmp_path / "html.tar").write_bytes(b"<html>" + bytes(2000))
    (tmp_path / "packed.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    found = shards(tmp_path)
    assert [f.path for f in found.files] == ["cut.tar!/a.mp4"]
    assert [(r.path, r.reason) for r in found.rejected] == [
        ("cut.tar", "bad_archive"), ("html.tar", "bad_archive"), ("packed.tar", "bad_archive"),
    ]  # fmt: skip
    assert "has 100 of its 2000 bytes" in found.rejected[0].detail
    copy_member(Storage(str(tmp_path)), "cut.tar!/a.mp4", tmp_path / "out")
    with pytest.raises(InputError, match="member is not in the archive"):
        copy_member(Storage(str(tmp_path)), "cut.tar!/b.mp4", tmp_path / "out")
    with pytest.raises(InputError, match="no shard found"):
        shards(tmp_path, shards=["*.tgz"])


def test_headers_that_claim_gigabytes_are_refused() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5 << 30
    stream = io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(TarError, match="extended header of 5368709120 bytes"):
        list(tar_members(stream))
    large = tarfile.TarInfo("large.mp4")
    large.size = 9 << 33  # base 256
    with pytest.raises(TarError, match=f"0 of its {9 << 33} bytes"):
        list(tar_members(io.BytesIO(large.tobuf(tarfile.GNU_FORMAT))))


def test_our_headers_agree_with_tarfile(tmp_path: Path) -> None:
    names = ["a" * 97 + ".b", "d" * 90 + "/" + "e" * 90, "ü/\N{GRINNING FACE}.jpg", "x" * 300, " lead", "-dash"]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        usable = [n for n in names if form != tarfile.USTAR_FORMAT or len(n) < 200]
        path = make_tar(tmp_path / f"{form}.tar", [(n, n.encode() * 50) for n in usable], form)
        with tarfile.open(path) as archive, path.open("rb") as stream:
            expected = [TarMember(m.name, m.offset_data, m.size) for m in archive]
            assert list(tar_members(stream)) == expected


def test_kept_clips_out_of_zips_and_tars_go_through_curate(tmp_path: Path) -> None:
    for seed in range(3):
        nasty.good_clip(tmp_path / "made" / f"{seed}.mp4", seed=seed)
    clips = [(tmp_path / "made" / f"{n}.mp4").read_bytes() for n in range(3)]
    members: list[tuple[str, bytes | tarfile.TarInfo]] = [
        ("x.mp4", clips[0]), ("x.txt", b"a red square in a tar"), ("y.mp4", b"no media"), ("y.txt", b"broken"),
    ]  # fmt: skip
    make_tar(tmp_path / "wds" / "0.tar", members)
    openvid(tmp_path / "ov", ["u.mp4", "v.mp4"])
    make_zip(tmp_path / "ov" / "OpenVid_part9.zip", {"u.mp4": clips[1], "deep/v.mp4": clips[2]}, zipfile.ZIP_DEFLATED)
    split(tmp_path / "ov" / "OpenVid_part9.zip", 2)
    work = tmp_path / "work"
    sources = curation_runs.inputs(
        curation_runs.list_source(work / "1", "shards", tmp_path / "wds", {"kind": "webdataset"}),
        curation_runs.list_source(
            work / "2", "openvid", tmp_path / "ov", {"kind": "openvid", "archives": ["OpenVid_part9.zip"]}
        ),
    )
    made = curation_runs.context(
        work / "3",
        "curate",
        curation_runs.CHEAP,
        sources,
        {"shards": str(tmp_path / "wds"), "openvid": str(tmp_path / "ov")},
    )
    found = curation_runs.curated(made)
    assert [(c["source"], c["source_id"], c["captions"]) for c in found.kept()] == [
        ("openvid", "v.mp4", ["caption of v.mp4"]), ("openvid", "u.mp4", ["caption of u.mp4"]),
        ("shards", "0.tar!/x.mp4", ["a red square in a tar"]),
    ]  # fmt: skip
    assert found.reasons() == {"y.mp4": "not_media"}


def test_reader_gives_a_member_as_a_local_file(tmp_path: Path) -> None:
    make_tar(tmp_path / "wds" / "0.tar", SHARD)
    reader = SourceReader(publish(tmp_path / "work", {"kind": "webdataset"}, tmp_path / "wds"))
    file = next(reader.files())
    path = reader.media_path(file, Storage(str(tmp_path / "wds")), tmp_path / "copies")
    assert path.read_bytes() == b"video a"
