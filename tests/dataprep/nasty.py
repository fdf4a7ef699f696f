"""Files and tables that break careless pipelines, made small and the same on every run.

Each function writes one case and says in its first line what a pipeline should make of it (reason words are
those of the quarantine). `corpus` writes them all into one folder beside good clips.
"""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np

from m4v.video_io import encode_mp4

FPS = 24


def frames(count: int = 24, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A textured square that moves: sharp, bright, in motion, so that no content filter drops it."""
    texture = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    ground = np.kron(texture, np.ones((4, 4, 1), dtype=np.uint8))
    pictures = np.repeat(ground[None], count, axis=0)
    for i in range(count):
        left = 2 + i * (width - 20) // max(count, 1)
        pictures[i, 12:28, left : left + 16] = (250, 40, 40)
    return pictures


def good_clip(
    path: Path, caption: str | None = "a red square moves to the right over a pattern", **options: int
) -> Path:
    """Kept (with a caption) or `missing_caption` (without)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_mp4(frames(**options), FPS))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n")
    return path


def with_caption(path: Path, data: bytes, caption: str = "a red square") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(caption + "\n")
    return path


def corrupt_mp4(path: Path) -> Path:
    """`decode_error`: the container is whole, the pictures are noise."""
    data = bytearray(encode_mp4(frames(48), FPS))
    start = data.index(b"mdat") + 4
    end = data.index(b"moov", start) - 4 if b"moov" in data[start:] else len(data)
    noise = np.random.default_rng(1).integers(0, 256, end - start - 64, dtype=np.uint8)
    data[start + 64 : end] = noise.tobytes()
    return with_caption(path, bytes(data))


def empty_file(path: Path) -> Path:
    """`empty`."""
    return with_caption(path, b"")


def text_as_mp4(path: Path) -> Path:
    """`not_media`: an error page that a downloader saved under a video's name."""
    return with_caption(path, b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n" * 40)


def audio_only_mp4(path: Path) -> Path:
    """`no_video`: an MP4 that holds sound alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = (8000 * np.sin(np.arange(16_000) * 0.05)).astype(np.int16)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=16_000)
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    path.with_suffix(".txt").write_text("a tone\n")
    return path


def truncated_mp4(path: Path, share: float = 0.5) -> Path:
    """`no_index` or `truncated`: the tail of the file never arrived."""
    data = encode_mp4(frames(48), FPS)
    return with_caption(path, data[: int(len(data) * share)])


def wave_as_mp4(path: Path) -> Path:
    """`no_video`: a sound file under a video's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\x00\x10" * 4000)
    path.with_suffix(".txt").write_text("a sound\n")
    return path


def missing_caption(path: Path) -> Path:
    """`missing_caption`."""
    return good_clip(path, None, seed=3)


def blank_caption(path: Path) -> Path:
    """`missing_caption`: the sidecar is there and holds nothing visible."""
    good_clip(path, None, seed=4)
    path.with_suffix(".txt").write_bytes(b"\xef\xbb\xbf \xe2\x80\x8b\r\n\t")
    return path


def bad_row_table(folder: Path) -> Path:
    """`bad_row` twice (ragged; open quote), `missing_file` once; the rows around them are good.

    Two clips, `row-1.mp4` and `row-6.mp4`, are listed by it.
    """
    good_clip(folder / "row-1.mp4", None, seed=5)
    good_clip(folder / "row-6.mp4", None, seed=6)
    table = folder / "captions.csv"
    table.write_text(
        "file,caption\n"
        'row-1.mp4,"a red square, moving"\n'
        "row-2.mp4,too,many,fields\n"
        "\n"
        'row-3.mp4,"a quote that never closes\n'
        "row-5.mp4,a file that is not there\n"
        "row-6.mp4,another red square\n"
    )
    return table


ODD_NAMES = (
    "-leading-dash.mp4", "--version.mp4", "two words.mp4", "dots.in.the.stem.mp4", "CON.mp4", "émoji 🎬.mp4",
    "UPPER.MP4", "quote'\".mp4", "percent%20.mp4", "#hash?.mp4",
)  # fmt: skip


def odd_names(folder: Path) -> list[Path]:
    """Kept, each with its own caption: names are data, never options, globs or URLs."""
    return [good_clip(folder / name, f"a red square number {i}", seed=10 + i) for i, name in enumerate(ODD_NAMES)]


EXPECTED = {
    "corrupt.mp4": {"decode_error", "truncated"},
    "empty.mp4": {"empty"},
    "text.mp4": {"not_media"},
    "audio.mp4": {"no_video"},
    "wave.mp4": {"no_video", "not_media"},
    "truncated.mp4": {"no_index", "truncated"},
    "uncaptioned.mp4": {"missing_caption"},
    "blank.mp4": {"missing_caption"},
}
GOOD = ("good-0.mp4", "good-1.mp4")


def corpus(folder: Path) -> Path:
    """All file cases (`EXPECTED`: name -> acceptable reasons) beside the good clips `GOOD`."""
    makers = {
        "corrupt.mp4": corrupt_mp4, "empty.mp4": empty_file, "text.mp4": text_as_mp4, "audio.mp4": audio_only_mp4,
        "wave.mp4": wave_as_mp4, "truncated.mp4": truncated_mp4, "uncaptioned.mp4": missing_caption,
        "blank.mp4": blank_caption,
    }  # fmt: skip
    for name, make in makers.items():
        make(folder / name)
    for number, name in enumerate(GOOD):
        good_clip(folder / name, f"a red square moves to the right, take {number}", seed=20 + number)
    return folder
