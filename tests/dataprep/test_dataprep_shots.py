"""Shot detection: real footage, segments against one piece, fades, and the arithmetic of scenes."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from dataprep.curate_config import ShotConfig
from dataprep.media.decode import open_reader
from dataprep.shots.detector import CONTEXT, STEP, open_detector, shot_frame
from dataprep.shots.histogram import frame_changes
from dataprep.shots.scenes import Span, scenes, split
from m4v.core.asset_catalog import asset_path

BIKES = [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242), (242, 250)]  # checked by eye
CITY = [(0, 116), (116, 190)]
UNTRIMMED = ShotConfig(trim_frames=0)


@cache
def footage(asset: str) -> np.ndarray:
    reader = open_reader(asset_path(asset))
    return np.stack([shot_frame(f) for f in reader.frames(range(reader.index.frames), 320)])


@cache
def boundaries(detector: str, asset: str) -> np.ndarray:
    frames = footage(asset)
    return open_detector(detector).boundaries(frames, 0, len(frames))


@pytest.mark.parametrize(
    ("detector", "asset", "shots"),
    [
        ("transnetv2", "corpus/street/bikes.mp4", BIKES),
        ("histogram", "corpus/street/bikes.mp4", BIKES),
        ("histogram", "corpus/street/cityCC0.mpg", CITY),
        pytest.param("transnetv2", "corpus/street/cityCC0.mpg", CITY, marks=pytest.mark.deep),
    ],
)
def test_cuts_of_real_footage(detector: str, asset: str, shots: list[tuple[int, int]]) -> None:
    assert [tuple(span) for span in scenes(boundaries(detector, asset), 0, UNTRIMMED)] == shots


@pytest.mark.parametrize("name", ["transnetv2", "histogram"])
def test_segments_give_the_values_of_one_piece(name: str) -> None:
    frames = footage("corpus/street/bikes.mp4")
    whole = boundaries(name, "corpus/street/bikes.mp4")
    start, end = 2 * STEP, 3 * STEP
    part = open_detector(name).boundaries(frames[start - CONTEXT : end + CONTEXT], CONTEXT, STEP)
    assert np.array_equal(part, whole[start:end])


def test_transnet_leaves_the_random_state_alone() -> None:
    import torch

    from dataprep.shots.transnet import transnet

    transnet.cache_clear()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    transnet()
    assert (torch.rand(1), np.random.rand()) == expected
    assert not torch.are_deterministic_algorithms_enabled()


def fading(frames: int = 60) -> np.ndarray:
    """Two textures with a fade through black between frames 20 and 40."""
    generator = np.random.default_rng(3)
    one, two = (generator.integers(40, 250, (27, 48, 3)) for _ in range(2))
    light = np.abs(np.clip((np.arange(frames) - 30) / 10, -1, 1))
    pictures = [(one if k < 30 else two) * light[k] for k in range(frames)]
    return np.stack(pictures).astype(np.uint8)


def test_histogram_finds_a_fade_through_black() -> None:
    found = scenes(open_detector("histogram").boundaries(fading(), 0, 60), 0, UNTRIMMED)
    assert len(found) == 2
    assert 25 <= found[0].end <= 31
    assert 30 <= found[1].start <= 34


def test_histogram_ignores_motion_and_noise() -> None:
    generator = np.random.default_rng(0)
    scene = generator.integers(0, 256, (27, 96, 3))
    moving = np.stack([np.roll(scene, k, axis=1)[:, :48] for k in range(48)])
    noisy = np.clip(moving + generator.normal(0, 8, moving.shape), 0, 255).astype(np.uint8)
    assert len(scenes(open_detector("histogram").boundaries(noisy, 0, 48), 0, UNTRIMMED)) == 1
    assert frame_changes(noisy[:1]).shape == (0,)


def test_no_detector_finds_nothing() -> None:
    assert not open_detector("none").boundaries(fading(), 0, 60).any()


def spans(flags: str, **options: object) -> list[tuple[int, int]]:
    probabilities = np.array([float(f) for f in flags], dtype=np.float32)
    return [tuple(s) for s in scenes(probabilities, 100, ShotConfig(**{"trim_frames": 0, **options}))]  # type: ignore[arg-type]


def test_scenes_from_flags() -> None:
    assert spans("0000") == [(100, 104)]
    assert spans("0100") == [(100, 102), (102, 104)]
    assert spans("00111000") == [(100, 103), (105, 108)]  # in a dissolve only the first frame stays
    assert spans("1000") == [(100, 101), (101, 104)]
    assert spans("0001") == [(100, 104)]
    assert spans("1111") == [(100, 101)]


def test_boundaries_are_trimmed_and_ends_are_not() -> None:
    assert spans("00000100000", trim_frames=2) == [(100, 104), (108, 111)]
    assert spans("010010000", trim_frames=1) == [(100, 101), (103, 104), (106, 109)]
    assert spans("0110", trim_frames=2) == []  # nothing is left of it


def test_scenes_never_overlap_or_leave_the_part() -> None:
    generator = np.random.default_rng(1)
    for trim in (0, 1, 3):
        probabilities = (generator.random(400) < 0.1).astype(np.float32)
        found = scenes(probabilities, 7, ShotConfig(trim_frames=trim, max_frames=20))
        assert all(a.end <= b.start for a, b in pairwise(found))
        assert all(0 < s.frames <= 20 and s.start >= 7 and s.end <= 407 for s in found)


def test_split_is_even_and_complete() -> None:
    assert split(Span(0, 100), None) == [(0, 100)]
    parts = split(Span(5, 106), 30)
    assert [p.frames for p in parts] == [25, 25, 25, 26]
    assert parts[0].start == 5
    assert parts[-1].end == 106


def test_overlap_counts_inclusive_ranges() -> None:
    assert Span(10, 20).overlap(15, 30) == 5
    assert Span(10, 20).overlap(20, 30) == 0
    assert Span(10, 20).overlap(0, 100) == 10
