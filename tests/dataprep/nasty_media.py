"""Video and image files that break careless decoders, one function a case of the nasty-input table."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import media_files
import nasty
import numpy as np
from av.stream import Disposition
from PIL import Image

FRAMES = 36
SIZE = (media_files.HEIGHT, media_files.WIDTH)


def scene(k: int, height: int = 96, width: int = 144) -> np.ndarray:
    """A textured square moving over a pattern: sharp and in motion, so that only the case decides."""
    return np.asarray(nasty.frames(FRAMES, height, width, seed=3)[k % FRAMES])


def write(path: Path, frames: int = FRAMES, **options: Any) -> Path:
    """`media_files.write` of the moving scene, with a caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(f"a red square moves over a pattern, {path.stem}\n")
    return media_files.write(path, frames, **{"picture": scene, **options})


def numbered(path: Path, frames: int = FRAMES, **options: Any) -> Path:
    """As `write`, each picture spelling its number."""
    return write(path, frames, picture=media_files.numbered, **options)


def patch(path: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def no_moov(path: Path) -> Path:
    write(path)
    return patch(path, lambda data: data.__delitem__(slice(data.index(b"moov") - 4, None)))


def cut_short(path: Path, groups: float) -> Path:
    """A faststart file of ten groups of twelve frames, of which `groups` arrived."""
    numbered(path, 120, container={"movflags": "+faststart"}, options={"crf": "2", "bf": "0"})
    begin = path.read_bytes().index(b"mdat") + 4
    return patch(path, lambda data: data.__delitem__(slice(begin + int((len(data) - begin) * groups / 10), None)))


def rotten(path: Path, share: float = 0.02, frames: int = 120) -> Path:
    """Noise over a share of the picture data, from its middle on."""
    numbered(path, frames, options={"crf": "4", "bf": "0"})

    def rot(data: bytearray) -> None:
        begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
        length = int((end - begin) * share)
        middle = begin + (end - begin - length) // 2
        data[middle : middle + length] = np.random.default_rng(5).integers(0, 256, length, np.uint8).tobytes()

    return patch(path, rot)


def cover_only(path: Path) -> Path:
    """A song with a picture on its cover."""
    nasty.audio_only_mp4(path)
    sound = path.read_bytes()
    song = path.with_name("without-cover.mp4")
    song.write_bytes(sound)
    with av.open(str(song)) as source, av.open(str(path), "w", format="mp4") as out:
        voice = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = voice
                out.mux(packet)
        out.mux(cover.encode(picture.reformat(format="yuvj420p")))
        out.mux(cover.encode(None))
    song.unlink()
    return path


def two_streams(path: Path) -> Path:
    """A small picture first, the film itself second, marked as default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("a red square, and a thumbnail\n")
    with av.open(str(path), "w") as out:
        streams = []
        for height, width, disposition in ((48, 64, 0), (96, 144, Disposition.default)):
            stream = out.add_stream("libx264", rate=24, options={"crf": "10", "g": "12"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = disposition
            streams.append((stream, height, width))
        for k in range(FRAMES):
            for stream, height, width in streams:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(scene(k, height, width), format="rgb24")))
        for stream, _, _ in streams:
            out.mux(stream.encode(None))
    return path


def variable_rate(path: Path, hole_s: float) -> Path:
    times = [round(1000 * k / 24) + (0 if k < 18 else round(1000 * hole_s)) for k in range(FRAMES)]
    return write(path, pts=times)


def late_start(path: Path) -> Path:
    """B-frames and a start at half a second: MP4 writes an edit list for both."""
    return numbered(path, 48, pts=[500 + round(1000 * k / 24) for k in range(48)])


def matrix(path: Path, values: tuple[float, float, float, float]) -> Path:
    """The display matrix ((a, b), (c, d)) written into the track header of a small MP4."""
    write(path)

    def turn(data: bytearray) -> None:
        a, b, c, d = (round(v * 65536) for v in values)
        place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
        data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)

    return patch(path, turn)


def wide_pixels(path: Path) -> Path:
    def anamorphic(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    return write(path, adjust=anamorphic)


def grows(path: Path) -> Path:
    """Two sizes in one transport stream, one after the other in time."""
    parts = []
    for number, (height, width) in enumerate(((96, 144), (128, 192))):
        part = path.with_name(f"part{number}.ts")

        def own(k: int, height: int = height, width: int = width) -> np.ndarray:
            return scene(k, height, width)

        pts = [round(1000 * (k + number * FRAMES) / 24) for k in range(FRAMES)]
        parts.append(media_files.write(part, picture=own, frames=FRAMES, pts=pts))
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    path.with_suffix(".txt").write_text("a red square, then a larger one\n")
    return path


def weave(path: Path, flagged: bool, telecine: bool = False) -> Path:
    """Fields of two moments in each frame; with `telecine`, of four film frames in five (two of them mixed)."""

    def moment(k: int) -> np.ndarray:
        picture = np.full((96, 144, 3), 60, np.uint8)
        picture[:, 4 + (7 * k) % 98 : 44 + (7 * k) % 98] = (230, 220, 200)
        picture[40:56] //= 2
        return picture

    def woven(k: int) -> np.ndarray:
        upper, lower = 2 * k, 2 * k + 1
        if telecine:
            film = 4 * (k // 5)
            upper, lower = 2 * (film + (0, 1, 1, 2, 3)[k % 5]), 2 * (film + (0, 1, 2, 3, 3)[k % 5])
        picture = moment(upper)
        picture[1::2] = moment(lower)[1::2]
        return picture

    options = {"crf": "8", "g": "12", "bf": "0"}
    if flagged:
        options["x264-params"] = "tff=1"
    return write(path, 96, picture=woven, options=options)


def tagged(
    path: Path, *, space: int, primaries: int, transfer: int, picture: Callable[[int], np.ndarray], bits: int = 10,
    full_range: bool = False, frames: int = FRAMES,
) -> Path:  # fmt: skip
    """FFV1 of 16-bit RGB signal pictures, in the tagged matrix and range, so that the tags alone decide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text(f"patches of light, {path.stem}\n")
    form = "yuv444p10le" if bits == 10 else "yuv444p"
    first = picture(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], form
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = space, primaries, transfer
        context.color_range = 2 if full_range else 1
        for k in range(frames):
            source = av.VideoFrame.from_ndarray(picture(k).astype(np.uint16), format="rgb48le")
            frame = source.reformat(
                format=form, dst_colorspace={9: 9, 2: 5}.get(space, space), src_color_range=2,
                dst_color_range=2 if full_range else 1,
            )  # fmt: skip
            frame.colorspace, frame.color_primaries, frame.color_trc = space, primaries, transfer
            frame.color_range = 2 if full_range else 1
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def signal(*patches: float) -> Callable[[int], np.ndarray]:
    """Vertical grey patches of a 16-bit signal 0..1, over a noisy strip that moves."""

    def picture(k: int) -> np.ndarray:
        values = np.repeat(np.array(patches), 32)
        row = np.repeat(values[None], 96, axis=0)
        blocks = np.kron(np.random.default_rng(0).random((4, len(values) // 8)), np.ones((8, 8)))
        row[:32] = np.roll(blocks * 0.4, 3 * k, axis=1)
        return np.repeat(np.rint(row * 65535)[..., None], 3, axis=2)

    return picture


def see_through(path: Path, codec: str, pixel_format: str) -> Path:
    """Left half transparent, right half opaque."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("a red square, half of it\n")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 144, 96, pixel_format
        stream.options = {"auto-alt-ref": "0", "crf": "8", "b": "4M"} if codec == "libvpx-vp9" else {}
        for k in range(FRAMES):
            alpha = np.zeros((96, 144, 1), np.uint8)
            alpha[:, 72:] = 255
            frame = av.VideoFrame.from_ndarray(np.dstack([scene(k), alpha]), format="rgba")
            out.mux(stream.encode(frame.reformat(format=pixel_format)))
        out.mux(stream.encode(None))
    return path


def animation(path: Path, frames: int = FRAMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("a red square, drawn again and again\n")
    pictures = [Image.fromarray(scene(k)) for k in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, loop=0)
    return path


def absurd_duration(path: Path, seconds: float = 3757) -> Path:
    """The header of a Matroska file claims more than an hour for a clip of 1.5 s."""
    write(path)

    def lie(data: bytearray) -> None:
        place = data.index(b"\x44\x89\x88") + 3  # element Duration, eight bytes
        data[place : place + 8] = struct.pack(">d", seconds * 1000)

    return patch(path, lie)


def beyond_four_gib(path: Path) -> Path:
    """A sparse file whose pictures lie behind 4 GiB of nothing, found by 64-bit chunk offsets (co64)."""
    numbered(path, 24, options={"bf": "0"})
    data = path.read_bytes()
    mdat = data.index(b"mdat") - 4
    moov = data.index(b"moov") - 4
    shift = (1 << 32) + 4096
    table = data.index(b"stco", moov) - 4
    size, count = struct.unpack(">I8xI", data[table : table + 16])
    offsets = struct.unpack(f">{count}I", data[table + 16 : table + size])
    wide = struct.pack(">I4sII", 16 + 8 * count, b"co64", 0, count)
    wide += struct.pack(f">{count}Q", *(offset + shift for offset in offsets))
    tail = bytearray(data[moov:table] + wide + data[table + size :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = tail.index(box) - 4
        tail[place : place + 4] = struct.pack(">I", struct.unpack(">I", tail[place : place + 4])[0] + 4 * count)
    with path.open("wb") as out:
        out.write(data[:mdat])
        out.write(struct.pack(">I4sQ", 1, b"free", shift))
        out.seek(mdat + shift)
        out.write(data[mdat:moov] + bytes(tail))
    return path


def bomb(path: Path, frames: int = 400) -> Path:
    """A few megabytes that decode to gigabytes: one large picture, packed once and shown over and over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("a plain wall\n")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 4096, 2160, "rgb24"
        wall = av.VideoFrame.from_ndarray(np.full((2160, 4096, 3), 120, np.uint8), format="rgb24")
        (packet,) = [*stream.encode(wall), *stream.encode(None)]
        for k in range(frames):
            again = av.Packet(bytes(packet))
            again.stream, again.time_base = stream, Fraction(1, 24)
            again.pts = again.dts = k
            again.is_keyframe = True
            out.mux(again)
    return path
