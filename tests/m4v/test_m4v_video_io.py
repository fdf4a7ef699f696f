"""`m4v.video_io`: equal bytes on every run, true rates and colours, clear refusals."""

import itertools
import subprocess
import sys
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from m4v.core.canonical import digest_bytes
from m4v.core.errors import DataIntegrityError, InputError
from m4v.video_io import encode_mp4, rational_fps, read_mp4, stream_mp4, write_mp4

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255], [0, 0, 0]], np.uint8)


def clip(frames: int = 9, height: int = 32, width: int = 96) -> np.ndarray:
    """Six colour bars and a square that moves two pixels a frame."""
    bars = np.repeat(COLOURS, width // 6, axis=0)
    video = np.broadcast_to(bars, (frames, height, width, 3)).copy()
    for t in range(frames):
        video[t, 4:10, 2 * t : 2 * t + 8] = (10, 200, 200)
    return video


@pytest.mark.parametrize(
    ("fps", "stored"),
    [(8, Fraction(8)), (24.0, Fraction(24)), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2)),
     (Fraction(24000, 1001), Fraction(24000, 1001))],
)  # fmt: skip
def test_rate_and_frame_count_are_kept(tmp_path: Path, fps: float, stored: Fraction) -> None:
    write_mp4(tmp_path / "a.mp4", clip(), fps)
    frames, read_fps = read_mp4(tmp_path / "a.mp4")
    assert frames.shape == (9, 32, 96, 3)
    assert rational_fps(fps) == stored
    assert read_fps == pytest.approx(float(stored), abs=1e-9)


def test_colours_come_back(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", clip(), 24)
    frames, _ = read_mp4(tmp_path / "a.mp4")
    centres = frames[:, 20, 8::16].astype(int)
    assert np.abs(centres - COLOURS).max() <= 3


def test_better_quality_is_closer(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    errors = []
    for crf in (8, 30):
        write_mp4(tmp_path / "a.mp4", noise, 24, crf=crf)
        errors.append(np.abs(read_mp4(tmp_path / "a.mp4")[0].astype(int) - noise).mean())
    assert errors[0] < errors[1]


def test_bytes_are_equal_in_another_process() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_m4v_video_io import clip\n"
        "from m4v.video_io import encode_mp4\n"
        "from m4v.core.canonical import digest_bytes\n"
        "print(digest_bytes(encode_mp4(clip(), 24)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    data = encode_mp4(clip(), 24)
    assert child.stdout.strip() == digest_bytes(data)
    assert b"Lavf" not in data


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", clip(frames=1), 24)
    frames, fps = read_mp4(tmp_path / "a.mp4")
    assert (len(frames), fps) == (1, 24.0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 31, 32, 3), "31x32"), ((2, 32, 33, 3), "32x33"), ((0, 32, 32, 3), "at least one frame"),
     ((32, 32, 3), r"\(T, H, W, 3\)")],
)  # fmt: skip
def test_wrong_frames_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_mp4(np.zeros(shape, np.uint8), 24)


def test_wrong_type_and_rate_are_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        encode_mp4(clip().astype(np.float32), 24)  # type: ignore[arg-type]
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="frame rate"):
            encode_mp4(clip(), fps)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_mp4(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DataIntegrityError, match="does not decode"):
        read_mp4(tmp_path / "text.mp4")
    data = encode_mp4(clip(), 24)
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataIntegrityError):
        read_mp4(tmp_path / "cut.mp4")


@pytest.mark.parametrize("sizes", [(9,), (1, 8), (1, 1, 3, 4), (1,) * 9])
def test_frames_in_pieces_give_the_same_bytes(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    video, edges = clip(), np.cumsum((0, *sizes))
    pieces = [video[a:b] for a, b in itertools.pairwise(edges)]
    assert stream_mp4(tmp_path / "a.mp4", iter(pieces), 24) == 9
    assert (tmp_path / "a.mp4").read_bytes() == encode_mp4(video, 24)


def test_pieces_are_taken_one_by_one_and_let_go(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def pieces() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(12):
            piece = clip(frames=8)
            alive.append(weakref.ref(piece))
            most = max(most, sum(r() is not None for r in alive))
            yield piece

    stream_mp4(tmp_path / "a.mp4", pieces(), 24)
    assert most <= 2


def test_a_stream_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield clip(frames=8)
        raise RuntimeError("model broke")

    (tmp_path / "a.mp4").write_bytes(b"before")
    with pytest.raises(RuntimeError, match="model broke"):
        stream_mp4(tmp_path / "a.mp4", broken(), 24)
    with pytest.raises(InputError, match="at least one frame"):
        stream_mp4(tmp_path / "a.mp4", [], 24)
    with pytest.raises(InputError, match="32x96 cannot go on with other frames: '32x48'"):
        stream_mp4(tmp_path / "a.mp4", [clip(), clip(width=48)], 24)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"before"
