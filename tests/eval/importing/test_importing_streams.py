"""What other people's video files hold: odd tags, cover art, edit lists, and files that are cut off."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest

from eval.importing import streams
from eval.importing.streams import read_stream
from m4v.core.errors import DataIntegrityError
from m4v.video_io import encode_mp4, read_mp4

FRAMES, TIMESCALE = 24, 16384  # of the MP4 muxer's choice at 8 frames per second


@pytest.fixture(scope="module")
def data() -> bytes:
    rng = np.random.default_rng(3)
    return encode_mp4(rng.integers(0, 256, (FRAMES, 32, 32, 3)).astype(np.uint8), 8)


def remuxed(folder: Path, data: bytes, **tags: str) -> bytes:
    """The same packets behind their index, with tags."""
    (folder / "from.mp4").write_bytes(data)
    place = folder / "to.mp4"
    with (
        av.open(str(folder / "from.mp4")) as given,
        av.open(str(place), "w", format="mp4", options={"movflags": "faststart"}) as made,
    ):
        made.metadata.update(tags)
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    return place.read_bytes()


def test_tags_of_another_encoding_are_nothing_to_fail_at(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "v.mp4"
    place.write_bytes(remuxed(tmp_path, data, title="cafQQ").replace(b"cafQQ", b"caf\xe9\xe9"))
    with pytest.raises(UnicodeDecodeError), av.open(str(place)):
        pass
    assert read_stream(place).shape == (FRAMES, 32, 32, 8.0)
    assert read_mp4(place)[0].shape == (FRAMES, 32, 32, 3)


def test_sound_with_cover_art_is_no_video(tmp_path: Path) -> None:
    place = tmp_path / "v.mp4"
    with av.open(str(place), "w", format="mp4") as made:
        sound, art = made.add_stream("aac", rate=8000, layout="mono"), made.add_stream("png", rate=1)
        art.width, art.height, art.pix_fmt = 64, 48, "rgb24"
        art.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        made.mux(sound.encode(silence) + sound.encode(None))
        made.mux(art.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
    with av.open(str(place)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(DataIntegrityError, match="holds no video"):
        read_stream(place)


def test_frames_that_the_edit_list_drops_are_not_cut_off(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "v.mp4"
    at = data.index(b"elst") + 12  # behind version, flags and count: duration, then where in the media it begins
    begin = int.from_bytes(data[at + 4 : at + 8], "big")
    place.write_bytes(data[: at + 4] + (begin + TIMESCALE).to_bytes(4, "big") + data[at + 8 :])
    assert read_stream(place).shape == (FRAMES - 8, 32, 32, 8.0)


@pytest.mark.parametrize("into_packet", [0, 5])
def test_a_file_that_ends_before_its_index_says_is_cut_off(tmp_path: Path, data: bytes, into_packet: int) -> None:
    whole, place = remuxed(tmp_path, data), tmp_path / "v.mp4"
    place.write_bytes(whole)
    with av.open(str(place)) as container:
        ends = sorted(p.pos for p in container.demux(video=0) if p.size)
    place.write_bytes(whole[: ends[12] + into_packet])
    with pytest.raises(DataIntegrityError) as caught:
        read_stream(place)
    assert re.fullmatch(r"is cut off: \d+ of 24 frames decode", caught.value.what)
    at = whole.index(b"elst") + 12  # and an edit list beside it changes nothing
    begin = int.from_bytes(whole[at + 4 : at + 8], "big")
    edited = whole[: at + 4] + (begin + TIMESCALE).to_bytes(4, "big") + whole[at + 8 :]
    place.write_bytes(edited[: ends[12] + into_packet])
    with pytest.raises(DataIntegrityError, match="is cut off"):
        read_stream(place)


def test_pictures_overwritten_behind_a_whole_index_do_not_decode(tmp_path: Path, data: bytes) -> None:
    place = tmp_path / "v.mp4"
    index = data.rindex(b"moov") - 4
    middle = data.index(b"mdat") + (index - data.index(b"mdat")) // 2
    place.write_bytes(data[:middle] + bytes(index - middle) + data[index:])
    with pytest.raises(DataIntegrityError, match="does not decode"):
        read_stream(place)


def test_a_frame_beyond_the_bound_is_not_decoded(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (place := tmp_path / "v.mp4").write_bytes(data)
    assert read_stream(place).frames == FRAMES
    monkeypatch.setattr(streams, "MAX_PIXELS", 32 * 31)
    with pytest.raises(DataIntegrityError, match="does not decode"):
        read_stream(place)


def test_only_mp4_is_read_and_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listing = Path("list.mp4")
    listing.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(DataIntegrityError, match="does not decode"):
        read_stream(listing)
    odd = Path("http:x.mp4")
    odd.write_bytes(encode_mp4(np.zeros((2, 32, 32, 3), np.uint8), 8))
    assert read_stream(odd).frames == 2
