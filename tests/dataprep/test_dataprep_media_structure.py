"""Damage that containers and bitstreams tell of without checksums of pictures, and clean files that tell of none."""

from fractions import Fraction
from pathlib import Path

import av
import media_files
import numpy as np
import pytest

from dataprep.media.decode import open_reader
from dataprep.media.index import FrameIndex, frame_index
from dataprep.media.probe import probe_video
from dataprep.media.reader import decoded
from dataprep.media.structure import structure_faults
from dataprep.quarantine import ItemError
from m4v.core.asset_catalog import asset_path

VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "1M"}
GROUP = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("structure")


def written(folder: Path, name: str) -> Path:
    codec, options = {
        ".webm": ("libvpx-vp9", VP9),
        ".avi": ("mpeg4", {"g": "12", "bf": "2", "q": "4"}),
    }.get(Path(name).suffix, ("libx264", {}))
    path = folder / name
    return path if path.exists() else media_files.write(path, 48, codec=codec, options=options)


def changed(path: Path, name: str, data: bytes) -> Path:
    copy = path.with_name(name)
    copy.write_bytes(data)
    return copy


def damaged(path: Path) -> list[int]:
    index = frame_index(path)
    return [n for n, frame in decoded(path, index, range(index.frames)) if frame is None]


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.ts", "a.avi", "a.mp4"])
def test_what_is_whole_shows_no_faults(folder: Path, name: str) -> None:
    path = written(folder, name)
    assert structure_faults(path) == ()
    assert "damaged" not in probe_video(path).warnings
    assert damaged(path) == []


# The deep ones are of the set `full`, which only `make test-deep` fetches.
@pytest.mark.parametrize(
    "asset",
    [
        "street/bikes.mp4", "street/cityCC0.mpg", pytest.param("footage/tree.avi", marks=pytest.mark.deep),
        pytest.param("footage/vtest.avi", marks=pytest.mark.deep),
    ],
)  # fmt: skip
def test_found_footage_shows_no_faults(asset: str) -> None:
    path = asset_path(f"corpus/{asset}")
    index = frame_index(path)
    assert index.faults == ()
    assert all(frame is not None for _, frame in decoded(path, index, range(min(index.frames, 60))))


@pytest.mark.parametrize("name", ["a.webm", "a.mkv", "a.ts", "a.avi"])
def test_a_hole_in_a_file_is_found_and_its_group_of_pictures_is_lost(folder: Path, name: str) -> None:
    path = written(folder, name)
    data = bytearray(path.read_bytes())
    begin = len(data) * 7 // 10
    data[begin : begin + len(data) // 8] = bytes(len(data) // 8)
    hole = changed(path, f"hole-{name}", bytes(data))
    assert structure_faults(hole)
    assert "damaged" in probe_video(hole).warnings
    assert damaged(hole) or frame_index(hole).frames < 30


def test_one_bit_of_a_matroska_cluster_fails_its_crc(folder: Path) -> None:
    path = written(folder, "a.mkv")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    assert structure_faults(changed(path, "bit.mkv", bytes(data)))


def test_lost_packets_of_a_transport_stream_are_missed_and_a_joint_is_none(folder: Path) -> None:
    path = written(folder, "a.ts")
    data = path.read_bytes()
    packets = [data[k : k + 188] for k in range(0, len(data), 188)]
    video = [k for k, packet in enumerate(packets) if packet[1] & 0x1F == 1 and not packet[1] & 0x40]
    lost = video[len(video) // 2]
    short = changed(path, "short.ts", b"".join(p for k, p in enumerate(packets) if k != lost))
    assert len(structure_faults(short)) == 1
    assert damaged(short)
    assert frame_index(changed(path, "joined.ts", data + data)).faults == ()
    assert structure_faults(changed(path, "cut.ts", data[:-100])) == (len(data) - 188,)


def test_vp9_data_that_decodes_to_rubbish_is_refused(folder: Path) -> None:
    path = written(folder, "a.webm")
    data = path.read_bytes()
    mended = found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        bad = bytearray(data)
        bad[int(rng.integers(len(data) // 3, len(data) * 2 // 3))] ^= 0x55
        rubbish = changed(path, "rubbish.webm", bytes(bad))
        with av.open(str(rubbish)) as container:
            try:
                mended += sum(1 for _ in container.decode(video=0)) == 48
            except av.error.FFmpegError:
                continue
        found += bool(damaged(rubbish))
    assert mended >= 6  # FFmpeg's own decoder shows them
    assert found >= mended - 1


def test_h264_groups_of_pictures_are_closed_or_not(folder: Path) -> None:
    assert frame_index(written(folder, "a.mp4")).closed
    assert frame_index(written(folder, "a.ts")).closed
    assert not frame_index(written(folder, "a.webm")).closed
    options = {"g": "12", "x264-params": "open-gop=1:b-adapt=0:bframes=3:keyint=12"}
    path = media_files.write(folder / "open.mp4", 48, options=options)
    assert not frame_index(path).closed
    assert damaged(path) == []


@pytest.mark.parametrize(("codec", "options"), [
    ("libx264", {"bf": "2"}), ("libx264", {"bf": "2", "x264-params": "open-gop=1"}), ("mpeg4", {"bf": "2", "g": "12"}),
])  # fmt: skip
def test_pictures_whose_times_are_those_of_decoding_are_sound_and_in_order(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    source = media_files.write(tmp_path / "right.mp4", 40, codec=codec, options=options)
    path = media_files.with_decoding_times(source, tmp_path / "decoding.mp4")
    index = frame_index(path)
    assert index.reordered
    assert np.array_equal(index.pts - index.pts[0], frame_index(source).pts - frame_index(source).pts[0])
    assert "time_order" in probe_video(path).warnings
    reader = open_reader(path)
    assert [media_files.number_of(picture) for picture in reader.frames(range(40))] == list(range(40))
    assert media_files.number_of(next(iter(reader.frames([29])))) == 29
    with pytest.raises(ItemError, match="order of decoding"):
        list(open_reader(path, "decord").frames([0]))


def test_b_pictures_at_their_own_times_are_sought_as_ever(tmp_path: Path) -> None:
    index = frame_index(media_files.write(tmp_path / "late.mp4", 30, pts=[500 + 40 * k for k in range(30)]))
    assert index.seekable
    assert not index.reordered
    plain = media_files.write(tmp_path / "plain.mp4", 30, options={"bf": "0"})
    assert frame_index(media_files.with_decoding_times(plain, tmp_path / "same.mp4")).seekable


@pytest.mark.deep
def test_found_footage_with_times_of_decoding_is_whole() -> None:
    path = asset_path("corpus/footage/box.mp4")
    index = frame_index(path)
    assert index.reordered
    assert sum(frame is None for _, frame in decoded(path, index, range(index.frames))) == 0


def test_a_group_with_damage_is_in_doubt_as_a_whole() -> None:
    index = FrameIndex(np.arange(48), np.array([0, 12, 24, 36]), Fraction(1, 24), 48, True)
    bad = np.zeros(48, bool)
    bad[17] = True
    assert np.flatnonzero(index.doubtful(bad)).tolist() == list(range(12, 24))
    assert np.flatnonzero(index.doubtful(bad[10:20], 10)).tolist() == list(range(2, 10))


@pytest.mark.parametrize(("at", "value"), [(6, 0x00), (6, 0xFF), (7, 0x40), (8, 0x02), (9, 0x00), (13, 0x00)])
def test_a_broken_pes_header_is_a_fault(folder: Path, at: int, value: int) -> None:
    path = written(folder, "a.ts")
    data = bytearray(path.read_bytes())
    begins = [k for k in range(0, len(data), 188) if data[k + 1] & 0x5F == 0x41 and data[k + 3] & 0x10]
    packet = begins[len(begins) // 2]
    header = data.index(b"\0\0\1\xe0", packet)
    assert header + 14 < packet + 188
    data[header + at] = value
    assert structure_faults(changed(path, "header.ts", bytes(data)), 0x100) == (packet,)
