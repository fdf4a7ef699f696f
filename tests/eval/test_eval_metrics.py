"""Local metrics: exact formulas, near 1 on clips that are true to their prompt, near chance on shuffled ones."""

import itertools

import numpy as np
import pytest
from eval_scenes import caption, clip_of, scene, true_clips

from eval.config import METRICS, EvaluateConfig
from eval.metrics.clip import Clip, evenly
from eval.metrics.colour import colour_follow, nearest_word, to_lab, word_rank
from eval.metrics.flow import summarise_flow
from eval.metrics.motion import motion, motion_direction, motion_follow
from eval.metrics.pixels import flicker, saturation, sharpness
from eval.metrics.registry import metrics_of
from eval.vocabulary import Facts, Motion
from m4v.core.palette import COLOURS

CLIPS = list(true_clips())


def mean(measure, pairs) -> float:
    return float(np.mean([measure(clip_of(text, frames)).value for text, frames in pairs]))


def shuffled() -> list[list[tuple[str, np.ndarray]]]:
    """Every clip with the caption of another one, for several shifts."""
    return [[(CLIPS[(i + s) % len(CLIPS)][0], frames) for i, (_, frames) in enumerate(CLIPS)] for s in range(1, 24, 4)]


def test_flicker_is_vbench_formula() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)
    pairs = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in itertools.pairwise(frames)]
    expected = (255.0 - np.mean(pairs)) / 255.0
    assert flicker(clip_of("x", frames)).value == pytest.approx(expected, abs=1e-12)
    assert flicker(clip_of("x", np.repeat(frames[:1], 4, axis=0))).value == 1.0
    black_white = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    assert flicker(clip_of("x", black_white)).value == 0.0


def test_a_still_picture_has_no_motion_metrics() -> None:
    one = clip_of("a red circle moves up", np.zeros((1, 32, 32, 3), np.uint8))
    assert all(measure(one).value is None for measure in (flicker, motion, motion_direction, motion_follow))


def test_saturation_and_sharpness() -> None:
    def flat(rgb: tuple[int, int, int]) -> Clip:
        return clip_of("x", np.broadcast_to(np.array(rgb, np.uint8), (2, 16, 16, 3)).copy())

    assert saturation(flat((200, 200, 200))).value == 0.0
    assert saturation(flat((255, 0, 0))).value == 1.0
    assert saturation(flat((200, 100, 100))).value == pytest.approx(0.5)
    assert saturation(flat((0, 0, 0))).value == 0.0
    sharp = scene("white", "square", Motion.STILL, "black", frames=2, noise=0)
    blurred = (sharp.astype(float) + np.roll(sharp, 1, 2) + np.roll(sharp, -1, 2)) / 3
    assert sharpness(clip_of("x", sharp)).value > 1.5 * sharpness(clip_of("x", blurred.astype(np.uint8))).value
    assert sharpness(flat((9, 9, 9))).value == 0.0


def test_lab_of_known_colours() -> None:
    # CIE values of the sRGB primaries (D65), as colour tables print them.
    assert to_lab(np.array([255, 0, 0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert to_lab(np.array([0, 0, 255])) == pytest.approx([32.30, 79.19, -107.86], abs=0.02)
    assert to_lab(np.array([255, 255, 255])) == pytest.approx([100, 0, 0], abs=0.02)


@pytest.mark.parametrize("word", COLOURS)
def test_every_colour_word_finds_itself(word: str) -> None:
    pure = np.array(COLOURS[word], float)
    assert nearest_word(to_lab(pure)) == word
    assert word_rank(to_lab(pure), word) == 1.0


def test_a_faint_colour_still_leans_to_its_word() -> None:
    faint_red = to_lab(np.array([150, 120, 120]))
    assert word_rank(faint_red, "red") >= 0.7
    assert word_rank(faint_red, "red") > word_rank(faint_red, "green")
    assert word_rank(faint_red, "red") > word_rank(faint_red, "cyan")


def test_colour_follow_true_clips_and_chance() -> None:
    assert mean(colour_follow, CLIPS) > 0.99
    assert 0.4 < np.mean([mean(colour_follow, pairs) for pairs in shuffled()]) < 0.6


def test_colour_follow_reads_object_and_background_apart() -> None:
    frames = scene("red", "circle", Motion.RIGHT, "blue")
    right = colour_follow(clip_of(caption("red", "circle", Motion.RIGHT, "blue"), frames))
    swapped = colour_follow(clip_of(caption("blue", "circle", Motion.RIGHT, "red"), frames))
    assert right.value == 1.0
    assert right.details is not None
    assert (right.details["object_found"], right.details["background_found"]) == ("red", "blue")
    assert swapped.value < 0.8
    only_background = colour_follow(clip_of("x", frames, facts=Facts(background_colour="blue")))
    assert only_background.value == 1.0


def test_colour_follow_without_an_object_or_without_colour_words() -> None:
    plain = np.broadcast_to(np.array(COLOURS["blue"], np.uint8), (5, 32, 32, 3)).copy()
    reading = colour_follow(clip_of("a red circle on a blue background", plain))
    assert reading.value == 0.5
    assert reading.details is not None
    assert reading.details["object_found"] is None
    assert colour_follow(clip_of("people walk on a beach", plain)).value is None


def test_motion_follow_true_clips_and_chance() -> None:
    assert mean(motion_follow, CLIPS) > 0.95
    assert 0.15 < np.mean([mean(motion_follow, pairs) for pairs in shuffled()]) < 0.35


@pytest.mark.parametrize("word", [Motion.RIGHT, Motion.LEFT, Motion.UP, Motion.DOWN])
def test_direction_by_object_and_by_flow(word: Motion) -> None:
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}[word]
    frames = scene("white", "circle", word, "black")
    for shape in ("circle", None):  # tracked object; optical flow
        true = clip_of("x", frames, facts=Facts(motion=word, shape=shape))
        false = clip_of("x", frames, facts=Facts(motion=Motion(opposite), shape=shape))
        assert motion_direction(true).value > 0.98
        assert motion_direction(false).value < -0.98
        assert motion_follow(true).value > 0.98
        assert motion_follow(false).value < 0.02


def test_still_and_moving_are_told_apart() -> None:
    still = scene("red", "square", Motion.STILL, "white")
    moving = scene("red", "square", Motion.LEFT, "white")
    facts = Facts(motion=Motion.STILL, shape="square")
    assert motion_follow(clip_of("x", still, facts=facts)).value > 0.9
    assert motion_follow(clip_of("x", moving, facts=facts)).value < 0.1
    frozen_as_moving = Facts(motion=Motion.LEFT, shape="square")
    assert motion_follow(clip_of("x", still, facts=frozen_as_moving)).value < 0.1


def test_camera_motion_is_the_whole_picture() -> None:
    rng = np.random.default_rng(3)
    wide = np.kron(rng.integers(0, 256, (8, 40, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pan_right = np.stack([wide[:, 4 * t : 4 * t + 96] for t in range(17)])  # the content moves left
    right = motion_follow(clip_of("the camera pans right over a wall", pan_right))
    left = motion_follow(clip_of("the camera pans left over a wall", pan_right))
    assert right.details is not None
    assert right.details["measured_by"] == "flow"
    assert right.value > 0.9
    assert left.value < 0.1


def test_motion_amount_does_not_depend_on_size() -> None:
    small = motion(clip_of("x", scene("white", "circle", Motion.RIGHT, "black", height=64, width=96))).value
    large = motion(clip_of("x", scene("white", "circle", Motion.RIGHT, "black", height=128, width=192))).value
    still = motion(clip_of("x", scene("white", "circle", Motion.STILL, "black"))).value
    assert small == pytest.approx(large, rel=0.2)
    assert still < 0.05 * small


def test_flow_does_not_depend_on_opencv_threads() -> None:
    import cv2

    frames = scene("green", "triangle", Motion.UP, "purple", frames=5)
    before = cv2.getNumThreads()
    try:
        found = []
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            found.append(summarise_flow(frames, 8))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert all(f is not None and np.array_equal(f.steps, found[0].steps) for f in found)


def test_evenly_spans_the_clip() -> None:
    assert evenly(57, 4) == [0, 19, 37, 56]
    assert evenly(3, 9) == [0, 1, 2]
    assert evenly(9, 1) == [4]


def test_registry_has_every_metric_once_under_its_own_name() -> None:
    found = metrics_of(EvaluateConfig(metrics=METRICS))
    assert [m.name for m in found] == list(METRICS)
    assert all(m.name.startswith(("local.", "conse.")) for m in found)
