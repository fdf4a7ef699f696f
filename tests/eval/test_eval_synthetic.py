"""The follow metrics on the clips that the demo trains on: 1 for the true caption, chance for another's."""

import numpy as np
import pytest
from eval_scenes import clip_of

from dataprep.sources.config import SyntheticConfig
from dataprep.sources.synthetic import captions_of, render, scene_of
from eval.metrics.colour import colour_follow
from eval.metrics.motion import motion_follow
from eval.vocabulary import parse_facts
from m4v.video_io import encode_mp4, read_mp4

FRAMES, HEIGHT, WIDTH = 17, 64, 96
CONFIG = SyntheticConfig.model_validate(
    {"count": 22, "frames": FRAMES, "size": (HEIGHT, WIDTH), "cameras": ("pan-right", "pan-left", "zoom-in")}
)


@pytest.fixture(scope="module")
def clips() -> list[tuple[list[str], np.ndarray]]:
    """Captions (three wordings) and frames as they come back from the compressed file."""
    import io

    found = []
    for index in range(CONFIG.count):
        scene = scene_of(CONFIG, index, still=False)
        data = encode_mp4(render(scene, FRAMES, HEIGHT, WIDTH), 8)
        found.append((captions_of(scene, 3), read_mp4(io.BytesIO(data))[0]))
    return found


def test_every_wording_states_colours_shape_and_motion(clips: list[tuple[list[str], np.ndarray]]) -> None:
    for captions, _ in clips:
        facts = [parse_facts(c) for c in captions]
        assert facts[0] == facts[1] == facts[2], captions
        assert None not in (facts[0].object_colour, facts[0].background_colour, facts[0].shape, facts[0].motion)


@pytest.mark.parametrize("measure", [colour_follow, motion_follow])
def test_true_captions_score_near_one(measure, clips: list[tuple[list[str], np.ndarray]]) -> None:
    values = [measure(clip_of(captions[0], frames)).value for captions, frames in clips]
    assert np.mean(values) > 0.97
    assert min(values) > 0.8


@pytest.mark.parametrize(("measure", "low", "high"), [(colour_follow, 0.4, 0.75), (motion_follow, 0.0, 0.35)])
def test_captions_of_other_clips_score_near_chance(
    measure, low: float, high: float, clips: list[tuple[list[str], np.ndarray]]
) -> None:
    """Four colours and four backgrounds only: many a wrong caption is half right."""
    values = [
        measure(clip_of(clips[(i + shift) % len(clips)][0][0], frames)).value
        for shift in (3, 8)
        for i, (_, frames) in enumerate(clips)
    ]
    assert low < np.mean(values) < high
