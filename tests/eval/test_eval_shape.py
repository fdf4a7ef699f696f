"""Shape and direction as found in drawn clips after the codec: right on true captions, chance on other clips'."""

import itertools

import numpy as np
import pytest
from eval_scenes import clip_of
from pydantic import ValidationError

from dataprep.sources.synthetic import Scene, captions_of, render
from eval.config import ASKED_METRICS, METRICS, EvaluateConfig
from eval.metrics.motion import direction_found
from eval.metrics.registry import metrics_of
from eval.metrics.shape import SHAPES, shape_fits, shape_follow
from eval.vocabulary import Motion
from m4v.codec import open_codec
from m4v.codec.config import DctCodecConfig

WORDS = ("circle", "square", "triangle", "star")
COLOURS = (("red", "white"), ("blue", "black"), ("yellow", "blue"), ("cyan", "black"))


@pytest.fixture(scope="module")
def clips() -> list[tuple[Scene, np.ndarray]]:
    """Four shapes in four directions, as they come back from the transform codec."""
    codec, found = open_codec(DctCodecConfig()), []
    for number, (shape, motion) in enumerate(itertools.product(WORDS, ("right", "left", "up", "down"))):
        colour, background = COLOURS[(number + number // 4) % 4]
        scene = Scene(shape, colour, background, motion, 0.2 + 0.005 * number, number / 8 - 1, 0.0)
        found.append((scene, codec.decode(codec.encode(render(scene, 9, 128, 128)))))
    return found


def test_shape_is_found_in_every_decoded_clip(clips: list[tuple[Scene, np.ndarray]]) -> None:
    for scene, frames in clips:
        fits = shape_fits(frames)
        assert fits is not None
        assert max(WORDS, key=lambda w: fits[w]) == scene.shape, (scene, fits)
        assert all(0 < fit < 1 for fit in fits.values())


def test_follow_is_near_one_for_true_captions_and_chance_for_others(clips: list[tuple[Scene, np.ndarray]]) -> None:
    def mean(shift: int) -> float:
        texts = [captions_of(clips[(i + shift) % len(clips)][0], 1)[0] for i in range(len(clips))]
        values = [shape_follow(clip_of(t, frames)).value for t, (_, frames) in zip(texts, clips, strict=True)]
        assert None not in values
        return float(np.mean([v for v in values if v is not None]))

    assert mean(0) > 0.95  # a blurred circle may pass for a hexagon
    assert 0.25 < np.mean([mean(4), mean(8), mean(12)]) < 0.6


def test_direction_is_found_in_every_decoded_clip(clips: list[tuple[Scene, np.ndarray]]) -> None:
    for scene, frames in clips:
        assert direction_found(clip_of(captions_of(scene, 1)[0], frames)) == Motion(scene.motion)


def test_what_does_not_move_has_no_direction(clips: list[tuple[Scene, np.ndarray]]) -> None:
    _, frames = clips[0]
    assert direction_found(clip_of("a red circle", np.repeat(frames[:1], 9, axis=0))) is None
    assert direction_found(clip_of("a red circle", frames[:1])) is None


@pytest.mark.parametrize("word", SHAPES)
def test_each_shape_fits_its_own_drawing_best(word: str) -> None:
    fits = shape_fits(render(Scene(word, "red", "white", None, 0.3, 0.0, 0.0), 1, 64, 64))
    assert fits is not None
    assert max(fits, key=lambda w: fits[w]) == word


def test_nothing_to_see_and_nothing_to_ask() -> None:
    blank = np.full((4, 64, 64, 3), 255, np.uint8)
    assert shape_fits(blank) is None
    assert shape_follow(clip_of("a red star moves up", blank)).value == 0.0
    assert shape_follow(clip_of("stripes move up", blank)).value is None
    assert shape_follow(clip_of("red rings on a white background", blank)).value is None
    assert shape_follow(clip_of("the camera pans to the left over red stars", blank)).value is None


def test_shape_is_taken_when_it_is_named_and_is_in_no_older_key() -> None:
    assert [m.name for m in metrics_of(EvaluateConfig(metrics=ASKED_METRICS))] == list(ASKED_METRICS)
    assert EvaluateConfig().metrics == METRICS
    with pytest.raises(ValidationError, match=r"local\.shape_follow"):
        EvaluateConfig(metrics=("local.no_such",))
