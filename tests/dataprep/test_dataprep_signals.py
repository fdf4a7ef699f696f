"""Signals: each against pictures whose answer is known, packaged models against real pictures and text."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from dataprep.curate_config import FilterConfig
from dataprep.media.blocks import blockiness
from dataprep.media.decode import open_reader
from dataprep.media.geometry import Box
from dataprep.media.images import read_image
from dataprep.signals import phash
from dataprep.signals.bars import BarTracker, bars
from dataprep.signals.brisque import brisque, regression
from dataprep.signals.clip import clip_scores, content_box, content_digest, sampled_hashes, spread
from dataprep.signals.frames import COLUMNS, FrameSignals, pack, unpack
from dataprep.signals.nsfw import nsfw_probability
from dataprep.signals.text import text_area
from m4v.core.asset_catalog import asset_path

H, W = 180, 320


def texture(seed: int = 0, height: int = H, width: int = W) -> np.ndarray:
    """A picture of blobs, smooth enough for optical flow."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 10 + 2, width // 10 + 2, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def measured(frames: list[np.ndarray], fps: float = 24, stride: int = 1) -> dict[str, float | None]:
    columns = columns_of(frames, stride)
    height, width = frames[0].shape[:2]
    return clip_scores(columns, fps, content_box(columns, width, height), width, height)


def columns_of(frames: list[np.ndarray], stride: int = 1) -> dict[str, np.ndarray]:
    signals = FrameSignals(stride)
    for k, frame in enumerate(frames):
        signals.add(k, frame, interlaced=False)
    return signals.columns()


def test_black_bright_and_frozen() -> None:
    black, white = np.zeros((H, W, 3), np.uint8), np.full((H, W, 3), 255, np.uint8)
    scores = measured([black] * 3 + [texture()] * 5 + [white] * 2)
    assert scores["black"] == 0.3
    assert scores["overexposed"] == pytest.approx(0.2, abs=0.02)
    assert scores["frozen"] == pytest.approx(7 / 9, abs=1e-3)
    assert scores["flash"] == pytest.approx(2 / 9, abs=1e-3)


def test_motion_is_in_pixels_a_second() -> None:
    wide = texture(1, H, W + 100)
    still = measured([wide[:, :W]] * 6)
    moving = measured([np.ascontiguousarray(wide[:, 3 * k : 3 * k + W]) for k in range(8)])
    assert still["motion"] == 0.0
    assert moving["motion"] == pytest.approx(72, rel=0.1)
    sparse = columns_of([np.ascontiguousarray(wide[:, 3 * k : 3 * k + W]) for k in range(9)], stride=4)
    assert np.flatnonzero(~np.isnan(sparse["motion"])).tolist() == [4, 8]


def test_sharpness_falls_with_blur() -> None:
    sharp = texture(2)
    values = [measured([cv2.GaussianBlur(sharp, (0, 0), s) if s else sharp] * 2)["sharpness"] for s in (0, 2, 6)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 15 < values[0]


def test_letterbox_and_pillarbox_are_cut_to_the_picture() -> None:
    frame = np.zeros((H, W, 3), np.uint8)
    frame[24:156] = texture(3)[24:156]
    box = content_box(columns_of([frame] * 4), 1280, 720)
    assert box.x0 == 0
    assert box.x1 == 1280
    assert 96 <= box.y0 <= 104
    assert 616 <= box.y1 <= 624
    side = np.zeros((H, W, 3), np.uint8)
    side[:, 60:260] = texture(3)[:, 60:260]
    assert measured([side] * 3)["letterbox"] == pytest.approx(0.375, abs=0.03)


def test_dark_pictures_are_not_letterboxes() -> None:
    night = np.zeros((H, W, 3), np.uint8)
    night[60:100, 150:190] = 255  # a moon
    assert bars(night[..., 0]) == (0, 0, 0, 0)
    assert all(np.isnan(b) for b in bars(np.zeros((H, W), np.uint8)))
    uneven = texture(4)
    uneven[:40] = 0  # only at the top: no letterbox
    assert content_box(columns_of([uneven] * 3), W, H) == Box(0, 0, W, H)


def test_columns_survive_storage() -> None:
    columns = columns_of([texture(k) for k in range(3)])
    assert set(columns) == set(COLUMNS)
    back = unpack(pack(columns))
    assert all(np.array_equal(back[n], columns[n], equal_nan=columns[n].dtype.kind == "f") for n in columns)
    assert all(back[n].dtype == COLUMNS[n] for n in columns)


def test_content_digest_is_of_the_pictures() -> None:
    one = columns_of([texture(k) for k in range(3)])
    assert content_digest(one) == content_digest(columns_of([texture(k) for k in range(3)]))
    assert content_digest(one) != content_digest(columns_of([texture(k) for k in (0, 1, 3)]))


def test_spread_takes_middles_of_equal_parts() -> None:
    assert spread(100, 4).tolist() == [12, 37, 62, 87]
    assert spread(3, 8).tolist() == [0, 1, 2]
    assert spread(1, 4).tolist() == [0]


def hashes(*pictures: np.ndarray) -> np.ndarray:
    return np.array([phash.perceptual_hash(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)) for p in pictures], dtype=np.uint64)


def test_perceptual_hash_survives_what_copies_undergo() -> None:
    original = read_image(asset_path("corpus/photos/coffee.png"))
    smaller = cv2.resize(original, (200, 133), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", original, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], cv2.IMREAD_COLOR)
    brighter = np.clip(original.astype(int) * 1.15 + 10, 0, 255).astype(np.uint8)
    other = read_image(asset_path("corpus/photos/chelsea.png"))
    first, *copies, stranger = hashes(original, smaller, jpeg, brighter, other)
    assert phash.distance(np.array([first]), np.array(copies)).max() <= 4
    assert phash.distance(np.array([first]), np.array([stranger]))[0] > 20


def test_hashes_of_structureless_pictures_are_zero() -> None:
    grey = np.full((90, 160, 3), 128, np.uint8)
    assert hashes(grey, np.zeros_like(grey)).tolist() == [0, 0]
    text = sampled_hashes(columns_of([texture(k) for k in range(20)]))
    assert len(text.split("-")) == 8
    assert phash.as_text(phash.from_text(text)) == text


def test_brisque_orders_distortions() -> None:
    clean = read_image(asset_path("corpus/photos/astronaut.png"))
    blurred = cv2.GaussianBlur(clean, (0, 0), 3)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", clean, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)
    scores = [brisque(p) for p in (clean, blurred, noisy, jpeg)]
    assert scores[0] is not None
    assert scores[0] < 30
    assert all(s is not None and s > 45 for s in scores[1:])
    assert brisque(clean[:20, :20]) is None
    assert regression().vectors.shape == (770, 36)


def test_brisque_features_of_gaussian_noise() -> None:
    """The fit recovers the shape 2 of normal deviates, and equal variances on both sides."""
    from dataprep.signals.brisque import _asymmetric_fit

    shape, mean, left, right = _asymmetric_fit(np.random.default_rng(0).normal(0, 3, 200_000))
    assert shape == pytest.approx(2, rel=0.02)
    assert mean == pytest.approx(0, abs=0.05)
    assert left == pytest.approx(9, rel=0.02)
    assert right == pytest.approx(9, rel=0.02)


def test_text_area_tells_cards_and_titles_from_pictures() -> None:
    card = next(iter(open_reader(asset_path("corpus/street/a.mp4")).frames([100], 960)))
    assert 0.02 < text_area(card) < 0.06
    clean = next(iter(open_reader(asset_path("corpus/street/bikes.mp4")).frames([100], 960)))
    assert text_area(clean) < 0.01
    for name in ("lion.jpg", "cheetah.jpg", "coffee.png"):
        assert text_area(read_image(asset_path(f"corpus/photos/{name}"))) < 0.01
    titled = texture(5, 360, 640) // 3
    cv2.putText(titled, "A LINE OF OVERLAID TEXT", (60, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.3, (255, 255, 255), 3)
    assert text_area(titled) > 0.02


def test_nsfw_is_low_for_what_we_have() -> None:
    for name in ("astronaut.png", "coffee.png", "tower.jpg"):
        assert nsfw_probability(read_image(asset_path(f"corpus/photos/{name}"))) < 0.1


def filmed(path: list[tuple[float, float]], seed: int = 6) -> list[np.ndarray]:
    """What a camera sees that looks at these places, in pixels, of a scene larger than its picture."""
    scene = texture(seed, H + 120, W + 120)
    moves = [np.array([[1, 0, -60 - x], [0, 1, -60 - y]], np.float32) for x, y in path]
    return [cv2.warpAffine(scene, move, (W, H), flags=cv2.INTER_LINEAR) for move in moves]


def test_jitter_tells_a_shaken_camera_from_a_smooth_pan_and_a_still_one() -> None:
    shakes = np.random.default_rng(1).normal(0, 2.5, (41, 2))
    pan = [(1.5 * k - 30, 0.4 * k) for k in range(41)]
    shaken, panned, still = (
        measured(filmed(path), stride=4)
        for path in ([(x + dx, y + dy) for (x, y), (dx, dy) in zip(pan, shakes, strict=True)], pan, [(0, 0)] * 41)
    )
    threshold = FilterConfig().max_jitter
    assert threshold is not None
    assert shaken["jitter"] > threshold > 10 * panned["jitter"]
    assert panned["jitter"] < 2
    assert still["jitter"] == 0
    assert panned["motion"] == pytest.approx(24 * np.hypot(1.5, 0.4), rel=0.1)


def test_a_jolt_or_a_missed_cut_is_no_jitter() -> None:
    pan = [(k - 20.0, 0.0) for k in range(41)]
    jolted = [(x + (9 if k == 16 else 0), y) for k, (x, y) in enumerate(pan)]
    assert measured(filmed(jolted), stride=4)["jitter"] < 2
    assert measured([*filmed(pan[:24]), *filmed(pan[24:], seed=7)], stride=4)["jitter"] < 2
    assert measured(filmed(pan[:3]))["jitter"] is None  # too few to tell


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1))


def test_blockiness_grows_with_quantisation() -> None:
    threshold = FilterConfig().max_blockiness
    assert threshold is not None
    for name in ("coffee.png", "chelsea.png", "astronaut.png"):
        clean = read_image(asset_path(f"corpus/photos/{name}"))
        ladder = [clean, *(jpeg(clean, q) for q in (60, 30, 10, 5))]
        found = [blockiness(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)) for p in ladder]
        assert found == sorted(found)
        assert found[0] < 1.05
        assert found[2] < threshold < found[3]
        cropped = cv2.cvtColor(ladder[3], cv2.COLOR_RGB2GRAY)[3:, 5:]  # the grid begins elsewhere
        assert blockiness(cropped) == pytest.approx(found[3], rel=0.15)
        deep = cv2.cvtColor(ladder[3], cv2.COLOR_RGB2GRAY).astype(np.uint16) << 2
        assert blockiness(deep, bits=10) == found[3]


def test_edges_patterns_and_fences_are_no_blocks() -> None:
    smooth = cv2.cvtColor(texture(8), cv2.COLOR_RGB2GRAY)
    barred = smooth.copy()
    barred[:24] = barred[-24:] = 0  # bars whose edges lie on the grid
    titled = smooth.copy()
    titled[120:144, 40:280] = 255
    tiles = np.kron(np.random.default_rng(0).integers(0, 256, (45, 80), np.uint8), np.ones((4, 4), np.uint8))
    fence = smooth.copy()
    fence[:, ::8] = 0
    for picture in (smooth, barred, titled, tiles, fence, np.full((H, W), 90, np.uint8)):
        assert blockiness(picture) < 1.15
    assert np.isnan(blockiness(smooth[:20]))


def letterboxed(frames: list[np.ndarray], bar: int = 40) -> list[np.ndarray]:
    return [cv2.copyMakeBorder(f, bar, bar, 0, 0, cv2.BORDER_CONSTANT) for f in frames]


def pillarboxed(frames: list[np.ndarray]) -> list[np.ndarray]:
    """A copy inside side bars, scaled to the analysis size as decoding does."""
    wide = [cv2.copyMakeBorder(f, 0, 0, 80, 80, cv2.BORDER_CONSTANT) for f in frames]
    return [cv2.resize(f, (W, W * H // (W + 160)), interpolation=cv2.INTER_AREA) for f in wide]


@pytest.mark.parametrize("boxed", [letterboxed, pillarboxed])
def test_a_copy_inside_bars_measures_like_its_original(boxed: Callable[[list[np.ndarray]], list[np.ndarray]]) -> None:
    original = filmed([(2.0 * k - 20, 0.5 * k) for k in range(21)])
    plain, copy = columns_of(original), columns_of(boxed(original))
    far = phash.distance(plain["phash"].astype(np.uint64), copy["phash"].astype(np.uint64))
    assert far.max() <= 4
    first, second = measured(original), measured(boxed(original))
    assert second["letterbox"] > 0.2
    for name in ("motion", "brightness", "overexposed"):
        assert second[name] == pytest.approx(first[name], rel=0.1, abs=0.02), name
    if boxed is letterboxed:  # of the same scale, so of the same sharpness
        assert second["sharpness"] == pytest.approx(first["sharpness"], rel=0.05)
    whole = FrameSignals(1, crop_bars=False)
    for k, frame in enumerate(boxed(original)):
        whole.add(k, frame, interlaced=False)
    assert whole.columns()["luma"].mean() < 0.9 * first["brightness"]


def test_bars_hold_through_dark_scenes_and_end_with_the_picture_behind_them() -> None:
    tracker = BarTracker()
    lit = letterboxed([texture(9)])[0][..., 0]
    dusk = lit.copy()
    dusk[40:90] = 0  # the upper picture is dark: its edge is not to be seen
    assert tracker.add(lit)[1] == (0, 41, W, H + 39)
    assert content_box(columns_of([cv2.cvtColor(dusk, cv2.COLOR_GRAY2RGB)]), W, H + 80).height == H + 80
    assert tracker.add(dusk)[1] == (0, 41, W, H + 39)
    assert tracker.add(np.zeros_like(lit))[1] == (0, 41, W, H + 39)
    assert tracker.add(texture(9, *lit.shape)[..., 0])[1] == (0, 0, W, H + 80)


def test_what_lies_outside_of_the_collections_crop_is_not_measured() -> None:
    scene = filmed([(3.0 * k - 20, 0) for k in range(8)])
    still = np.zeros((H, W, 3), np.uint8)
    halves = [np.concatenate([moving[:, : W // 2], still[:, W // 2 :]], axis=1) for moving in scene]
    for part, moves in (((0, 0, 0.5, 1), True), ((0.5, 0, 1, 1), False)):
        signals = FrameSignals(1, part=part)
        for k, frame in enumerate(halves):
            signals.add(k, frame, interlaced=False)
        columns = signals.columns()
        assert bool(columns["change"][1:].min() > 0) == moves
        assert len(set(columns["content"].tolist())) == (8 if moves else 1)
        assert bool(columns["phash"].all()) == moves
