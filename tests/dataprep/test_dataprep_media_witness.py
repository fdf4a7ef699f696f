"""Damage that decoders pass over: found by a second one, by what follows a frame's data, by bits after a tile."""

from pathlib import Path

import av
import media_files
import pytest
from av.codec.context import CodecContext
from av.packet import Packet

from dataprep.media.decode import decode_span, open_reader
from dataprep.media.index import frame_index
from dataprep.media.reader import decoded
from dataprep.media.vp9 import coded_frames, padded
from dataprep.media.witness import Witness, witness_of
from dataprep.quarantine import ItemError

FRAMES = 24
FAST = {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "1M"}
CODECS = {
    "vp8.webm": ("libvpx", FAST),
    "vp9.webm": ("libvpx-vp9", FAST),
    "av1.mp4": ("libsvtav1", {"g": "12", "preset": "12", "crf": "30"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("witness")
    for name, (codec, options) in CODECS.items():
        media_files.write(made / name, FRAMES, codec=codec, options=options)
    return made


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def damaged(path: Path, *, watched: bool) -> int:
    index = frame_index(path)
    return sum(frame is None for _, frame in decoded(path, index, range(index.frames), watched))


def first_and_witness(path: Path, name: str) -> tuple[CodecContext, Witness]:
    first = CodecContext.create(name, "r")
    with av.open(str(path)) as container:
        witness = witness_of(container.streams.video[0], first)
    assert witness is not None
    return first, witness


@pytest.mark.parametrize("name", sorted(CODECS))
def test_nothing_is_held_against_what_is_whole(folder: Path, name: str) -> None:
    path = folder / name
    assert damaged(path, watched=True) == 0
    wanted = [1, FRAMES // 2, FRAMES - 1]  # by jumping too
    once, twice = (list(open_reader(path, backend).frames(wanted)) for backend in ("pyav-once", "pyav"))
    assert all((a == b).all() for a, b in zip(once, twice, strict=True))


def test_frames_of_a_vp9_superframe(folder: Path) -> None:
    whole = packets(folder / "vp9.webm")
    parts = [coded_frames(packet) for packet in whole]
    assert max(map(len, parts)) == 2  # a hidden frame before the one that is shown
    packet, (hidden, shown) = next((w, p) for w, p in zip(whole, parts, strict=True) if len(p) == 2)
    assert packet.startswith(hidden + shown)
    lying = packet[: len(hidden) + len(shown)] + packet[-1:] + b"\xff" * (len(packet) - len(hidden + shown) - 2)
    assert coded_frames(lying + packet[-1:]) == [lying + packet[-1:]]
    assert coded_frames(shown) == [shown]
    assert padded(packet) == packet
    assert padded(shown)[: len(shown)] == shown
    assert not any(padded(shown)[len(shown) :])


def test_a_vp9_frame_that_ends_before_its_data_is_refused_and_zeros_are_not(folder: Path) -> None:
    first, witness = first_and_witness(folder / "vp9.webm", "libvpx-vp9")
    whole = packets(folder / "vp9.webm")
    place = next(k for k in range(6, FRAMES) if len(coded_frames(whole[k])) == 1)
    for packet in whole[:place]:
        assert witness.confirms(packet, first.decode(Packet(packet)))  # type: ignore[attr-defined]
    rest = whole[place] + b"\x5a"
    shown = first.decode(Packet(rest))  # type: ignore[attr-defined]
    assert len(shown) == 1  # the first decoder says nothing
    assert not witness.confirms(rest, shown)
    witness.flush()
    assert all(witness.confirms(packet, []) for packet in [*whole[:place], whole[place] + bytes(40)])


def test_a_vp8_picture_that_two_decoders_make_up_is_refused(folder: Path) -> None:
    first, witness = first_and_witness(folder / "vp8.webm", "libvpx")
    whole = packets(folder / "vp8.webm")
    assert witness.confirms(whole[0], first.decode(Packet(whole[0])))  # type: ignore[attr-defined]
    half = whole[1][: len(whole[1]) // 2]
    shown = first.decode(Packet(half))  # type: ignore[attr-defined]
    assert len(shown) == 1
    assert not witness.confirms(half, shown)


def test_bits_after_an_av1_tile_are_compared_where_that_is_asked_for(folder: Path) -> None:
    data = bytearray((folder / "av1.mp4").read_bytes())
    last = packets(folder / "av1.mp4")[FRAMES - 2]
    data[data.index(last) + len(last) - 1] ^= 1
    path = folder / "bit.mp4"
    path.write_bytes(data)
    assert damaged(path, watched=False) == 0
    assert damaged(path, watched=True) > 0
    size = (media_files.HEIGHT, media_files.WIDTH)
    assert decode_span(path, 0, FRAMES, fps=24, size=size).shape[0] == FRAMES  # of a clip that was measured
    with pytest.raises(ItemError, match="damaged"):
        decode_span(path, 0, FRAMES, fps=24, size=size, backend="pyav")
