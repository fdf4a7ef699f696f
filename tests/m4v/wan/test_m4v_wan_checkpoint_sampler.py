"""Videos of a checkpoint that training wrote for a Wan model: one interface with the pyramid's."""

import numpy as np
import pytest
from wan_cases import random_wan

from m4v.codec.config import DctCodecConfig
from m4v.config import VideoConfig
from m4v.core.errors import ConfigError, InputError
from m4v.family import read_checkpoint_config
from m4v.sampling import VideoSampler, open_sampler
from m4v.text.config import MiniLmConfig
from m4v.wan.checkpoint import save_wan
from m4v.wan.config import WanCheckpointConfig

SIZE = {"frames": 9, "height": 48, "width": 64, "fps": 16}
SAMPLER = {"kind": "wan", "steps": 2, "guidance": 3.0, "negative_prompt": ""}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> VideoSampler:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = random_wan(latent_channels=16, text_dim=384, text_slots=8)
    config = WanCheckpointConfig(
        model=model.wan, codec=DctCodecConfig(time_stride=4).canonical(), text_encoder=MiniLmConfig(slots=8).canonical()
    )  # type: ignore[arg-type]
    save_wan(folder, config, model.state_dict())
    assert isinstance(read_checkpoint_config(folder / "config.json"), WanCheckpointConfig)
    return open_sampler(folder.joinpath)


def test_all_latents_come_at_once_and_steps_are_counted(sampler: VideoSampler) -> None:
    config = VideoConfig.model_validate({**SIZE, "sampler": SAMPLER})
    seen: list[int] = []
    steps: list[tuple[int, int]] = []
    made = [
        np.concatenate(
            list(
                sampler.stream(
                    "a red circle", 3, config,
                    on_latent=lambda index, latent: seen.append(index),
                    on_progress=lambda done, total: steps.append((done, total)),
                )
            )
        )
        for _ in range(2)
    ]  # fmt: skip
    assert made[0].shape == (9, 48, 64, 3)
    assert np.array_equal(made[0], made[1])
    assert (seen, steps) == ([0, 1, 2] * 2, [(1, 2), (2, 2)] * 2)
    other = np.concatenate(list(sampler.stream("a blue square", 3, config)))
    assert not np.array_equal(made[0], other)


def test_what_a_wan_model_has_no_use_for_is_refused(sampler: VideoSampler) -> None:
    wan = VideoConfig.model_validate({**SIZE, "sampler": SAMPLER})
    with pytest.raises(ConfigError, match=r"the sampler is the pyramid's.*set sampler\.kind to wan"):
        list(sampler.stream("a red circle", 3, VideoConfig(frames=9, height=64, width=64)))
    with pytest.raises(InputError, match="takes no first frame"):
        list(sampler.stream("a red circle", 3, wan, image=np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"frames": 8}, "must be 4k \\+ 1"), ({"height": 40}, "not a multiple of 16: use 32 or 48"),
     ({"sampler": {"kind": "wan", "steps_first": [1]}}, "steps_first"),
     ({"sampler": {"kind": "other"}}, "kind is wan")],
)  # fmt: skip
def test_sizes_follow_the_family_of_the_sampler(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VideoConfig.model_validate({**SIZE, "sampler": SAMPLER, **changes})
