import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dataprep.sources import probe, scan
from dataprep.sources.adapter import ScanContext
from dataprep.sources.config import MOTIONS, SHAPES, SourceConfig, SyntheticConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.drawing import distance, grid
from dataprep.sources.synthetic import Scene, SyntheticAdapter, captions_of, render, scene_of
from eval.vocabulary import parse_facts
from m4v.core.items import ItemStore
from m4v.core.palette import COLOURS
from m4v.core.storage import Storage
from m4v.video_io import read_mp4

CAMERAS = ("pan-right", "pan-left", "zoom-in")
HEIGHT, WIDTH, FRAMES = 48, 64, 9


def scene(motion: str | None, **changes: object) -> Scene:
    return Scene("circle", "red", "blue", motion, 0.25, 0.3, 1.0)._replace(**changes)


def mask(pictures: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(pictures.astype(int) - np.array(COLOURS[colour])).max(-1) < 40


def centres(pictures: np.ndarray) -> np.ndarray:
    """(T, 2) mean x, y of the red pixels."""
    return np.array([[c.mean() for c in np.nonzero(m)[::-1]] for m in mask(pictures, "red")])


@pytest.mark.parametrize(
    ("motion", "direction"), [("right", (1, 0)), ("left", (-1, 0)), ("down", (0, 1)), ("up", (0, -1))]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_go_where_the_word_says(shape: str, motion: str, direction: tuple[int, int]) -> None:
    steps = np.diff(centres(render(scene(motion, shape=shape), FRAMES, HEIGHT, WIDTH)), axis=0)
    along = steps @ np.array(direction)
    assert (along > 1).all()
    assert np.ptp(along) < 1.0  # even speed
    assert np.abs(steps @ np.array(direction[::-1])).max() < 0.5


def test_growing_shrinking_and_stillness() -> None:
    area = {m: mask(render(scene(m), FRAMES, HEIGHT, WIDTH), "red").sum((1, 2)) for m in ("grows", "shrinks", "still")}
    assert (np.diff(area["grows"]) > 0).all()
    assert (np.diff(area["shrinks"]) < 0).all()
    still = render(scene("still"), FRAMES, HEIGHT, WIDTH)
    assert (still == still[0]).all()


def test_circling_goes_once_round() -> None:
    places = centres(render(scene("circles"), 17, HEIGHT, WIDTH)) - (WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5)
    turned = np.unwrap(np.arctan2(places[:, 1], places[:, 0]))
    assert turned[-1] - turned[0] == pytest.approx(2 * np.pi, abs=0.1)
    assert np.ptp(np.hypot(*places.T)) < 1.5


@pytest.mark.parametrize(("camera", "expected"), [("pan-right", -1), ("pan-left", 1)])
def test_a_pan_moves_the_picture_the_other_way(camera: str, expected: int) -> None:
    pictures = render(scene(camera), 33, HEIGHT, WIDTH).astype(int)
    moved = [np.abs(np.roll(pictures[0], s, axis=1) - pictures[1])[:, 8:-8].mean() for s in (-2, -1, 0, 1, 2)]
    assert np.sign(int(np.argmin(moved)) - 2) == expected


def test_a_zoom_doubles_the_shapes() -> None:
    red = mask(render(scene("zoom-in", cross=0.0), 9, 96, 96), "red")
    middle = [m[48, 48:].argmin() for m in red]  # radius of the shape in the middle
    assert middle[-1] == pytest.approx(2 * middle[0], abs=1)


@given(st.sampled_from(SHAPES), st.floats(4, 20))
@settings(max_examples=40, deadline=None)
def test_distances_are_those_of_the_shape(shape: str, radius: float) -> None:
    x, y = grid(64, 64)
    signed = distance(shape, x - 32, y - 32, radius)
    assert signed[32, 32] < 0
    assert signed[0, 0] > 0
    outside = np.hypot(x - 32, y - 32) > radius + 0.5
    assert (signed[outside] > 0).all()
    assert np.abs(np.diff(signed, axis=0)).max() <= 1.01  # a distance never changes faster than its place


@pytest.mark.parametrize("motion", [*MOTIONS, *CAMERAS, None])
@pytest.mark.parametrize("form", [0, 1, 2])
def test_captions_say_what_the_evaluation_reads(motion: str | None, form: int) -> None:
    text = captions_of(scene(motion), 3)[form]
    facts = parse_facts(text)
    assert (facts.object_colour, facts.background_colour, facts.shape) == ("red", "blue", "circle")
    words = {
        "grows": "grow",
        "shrinks": "shrink",
        "circles": "circle",
        "pan-right": "left",
        "pan-left": "right",
        "zoom-in": "grow",
    }
    assert facts.motion == words.get(str(motion), motion)


def test_captions_are_english() -> None:
    assert captions_of(scene("right"), 1) == ["a red circle moves from left to right on a blue background"]
    assert captions_of(scene(None, colour="orange"), 1) == ["an orange circle on a blue background"]
    assert captions_of(scene("pan-left"), 1) == ["the camera pans to the left over red circles on a blue background"]


def test_words_are_dealt_evenly() -> None:
    config = SyntheticConfig(count=48)
    scenes = [scene_of(config, i, False) for i in range(48)]
    assert set(Counter(s.motion for s in scenes).values()) == {6}
    assert set(Counter(s.colour for s in scenes).values()) == {12}
    assert set(Counter(s.shape for s in scenes).values()) == {12}
    assert all(s.colour != s.background for s in scenes)
    assert len({s[:4] for s in scenes}) > 40


def test_more_clips_change_none() -> None:
    few, many = SyntheticConfig(count=5), SyntheticConfig(count=500)
    assert [scene_of(few, i, False) for i in range(5)] == [scene_of(many, i, False) for i in range(5)]
    assert scene_of(few, 0, False) != scene_of(SyntheticConfig(count=5, seed=1), 0, False)


def test_listing_holds_facts_and_readable_media(tmp_path: Path) -> None:
    config = SyntheticConfig(count=3, stills=2, frames=9, size=(32, 48), captions=2)
    found = scan(config, Storage(str(tmp_path)))
    assert [f.media for f in found.files] == ["video"] * 3 + ["image"] * 2
    for file in found.files[:3]:
        frames = read_mp4(tmp_path / file.path)[0]
        assert frames.shape == (9, 32, 48, 3)
        assert len(file.captions) == 2
        assert str(file.extra["colour"]) in file.captions[0].text
        middle = frames[4].reshape(-1, 3).astype(int)
        near = np.abs(middle - np.array(file.extra["colour_rgb"])).max(-1) < 60
        assert near.mean() > 0.02
    assert found.files[3].extra["frames"] == 1
    assert found.files[3].extra["motion"] is None


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name, threads in (("one", "1"), ("two", "4")):
        command = [sys.executable, "-m", "dataprep.sources.synthetic", "--out", str(tmp_path / name), "--count", "3",
                   "--stills", "1", "--frames", "9", "--size", "32", "48"]  # fmt: skip
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={"OMP_NUM_THREADS": threads, "PATH": "", "M4V_CACHE": str(tmp_path)},
        )
        assert len(done.stdout.splitlines()) == 4
        digests.append([(p.name, p.read_bytes()) for p in sorted((tmp_path / name / "media").iterdir())])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 8


def test_drawn_clips_are_taken_from_the_item_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(count=3, frames=5, size=(32, 32))
    items = ItemStore(Storage(str(tmp_path / "items")))
    with DigestCache(tmp_path / "digests") as digests:
        context = ScanContext(digests, items)
        first = list(SyntheticAdapter().entries(config, Storage(str(tmp_path / "a")), context))
        monkeypatch.setattr("dataprep.sources.synthetic.render", None)  # nothing may be drawn again
        again = list(SyntheticAdapter().entries(config, Storage(str(tmp_path / "b")), context))
    assert first == again
    assert len(again) == 3


def test_probe_needs_no_location() -> None:
    config = SourceConfig(name="shapes", adapter=SyntheticConfig())
    assert probe(config, {}) == probe(config, {"shapes": "/anywhere"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "nothing to draw"),
        ({"size": (33, 64)}, "even sides"),
        ({"colours": ("mauve",)}, "is not one of red"),
        ({"colours": ("red",), "backgrounds": ("red",)}, "differs from a background"),
        ({"motions": ()}, "motion or a camera word"),
        ({"motions": ("sideways",)}, "Input should be"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig.model_validate(change)


def test_threads_change_neither_order_nor_bytes_and_stop_when_the_scan_does(tmp_path: Path) -> None:
    config = SyntheticConfig(count=5, stills=2, frames=3, size=(16, 16))
    with DigestCache() as digests:
        found = [
            list(SyntheticAdapter().entries(config, Storage(str(tmp_path / str(n))), ScanContext(digests, workers=n)))
            for n in (1, 3)
        ]

        def stop(done: int, total: int | None) -> None:
            if done == 2:
                raise InterruptedError(total)

        stopped = ScanContext(digests, tick=stop, workers=3)
        with pytest.raises(InterruptedError, match="7"):
            list(SyntheticAdapter().entries(config, Storage(str(tmp_path / "stopped")), stopped))
    assert found[0] == found[1]
    assert len(list((tmp_path / "stopped/media").iterdir())) == 2
