"""What a plan says of a reward stage's frozen networks, held against the networks themselves."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clip_weights import clip_shapes
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "m4v"))

from live_memory import LiveMemory

from m4v.codec.config import CausalVaeConfig, CodecConfig, DctCodecConfig, WanVaeConfig
from m4v.config import ModelConfig
from m4v.core.errors import ConfigError
from m4v.scores.clip_config import TOWERS, ClipConfig, HpsConfig
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig
from m4v.vae.weights import expected_shapes
from m4v.wan.config import WanConfig
from m4v.wan.vae import WanVae
from training.config import EngineConfig, OrderConfig, RewardConfig, RewardTermConfig, WeightedScorer
from training.preflight import Setup, check_fits, estimate, gpu_of
from training.preflight.anchors import REWARD_SHARE, slowness
from training.preflight.reward import (
    DECODED_ELEMENTS,
    VAE_PARAMETERS,
    WAN_VAE_PARAMETERS,
    decode_flops,
    reward_work,
    vision_parameters,
    wan_decode_flops,
)  # fmt: skip
from training.samples import SampleGroup

VAE = CausalVaeConfig(weights="vae", dtype="bfloat16")
GROUPS = (SampleGroup("film", "video", 16, 96, 160, 10),)
STAGE = RewardConfig(
    name="reward", steps=100, text_drop=0.0,
    order=OrderConfig(frames=121, min_frames=121, tokens_per_pack=20_000, packs=128, image_every=0, high_units=8),
    engine=EngineConfig(zero_stage=3, dtype="bfloat16", checkpointing="block"),
    reward=RewardTermConfig(scorers=(WeightedScorer(scorer=HpsConfig()), WeightedScorer(scorer=ClipConfig()))),
)  # fmt: skip


def setup(gpu: str = "h100-80gb", codec: CodecConfig | None = VAE, ranks: int = 8) -> Setup:
    return Setup("reward", ModelConfig(), STAGE, GROUPS, ranks, gpu_of(gpu), codec=codec)


def test_sizes_are_those_of_the_networks() -> None:
    assert sum(math.prod(shape) for shape in expected_shapes(VaeConfig()).values()) == VAE_PARAMETERS
    for towers in (TOWERS["vit-h-14"], TOWERS["vit-l-14-openai"]):
        shapes = {name: shape for name, shape in clip_shapes(towers).items() if name.startswith("visual.")}
        assert sum(map(math.prod, shapes.values())) == vision_parameters(towers)


def test_operations_of_a_decode_are_counted_by_torch_alike() -> None:
    with torch.device("meta"):
        vae = CausalVideoVae(VaeConfig()).requires_grad_(False)
    latents = [torch.zeros(1, 16, 1, 8, 8, device="meta")] * 3

    def counted(count: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            list(vae.decode_stream(latents[:count]))
        return int(counter.get_total_flops())

    assert decode_flops(VaeConfig(), 8, 8) == pytest.approx(counted(3) - counted(2), rel=0.02)


def test_a_reward_counts_scorers_decode_and_their_time() -> None:
    found, plain = estimate(setup()), estimate(setup(codec=None))
    assert found is not None
    assert plain is not None
    towers = [TOWERS["vit-h-14"], TOWERS["vit-l-14-openai"]]
    assert found.memory.frozen == 2 * (VAE_PARAMETERS + sum(map(vision_parameters, towers)))
    # 31 GB are counted on the meta device (tests/m4v/vae/test_m4v_vae_memory.py); part is the backward pass's room.
    counted = 2 * DECODED_ELEMENTS * 768 * 1280
    assert counted == pytest.approx(31e9, rel=0.02)
    assert 25e9 < found.memory.reward < 32e9
    assert found.memory_bytes - plain.memory_bytes > found.memory.frozen + found.memory.reward
    assert found.fits
    assert plain.step_seconds is not None
    assert found.step_seconds is not None
    rate = 989.4e12 * REWARD_SHARE * 8 / slowness(gpu_of("h100-80gb"))
    assert found.step_seconds - plain.step_seconds == pytest.approx(found.reward_flops / rate)
    assert (plain.memory.frozen, plain.memory.reward, plain.reward_flops) == (0, 0, 0)


def test_a_scorer_that_is_only_watched_counts_too_and_dropped_captions_cost_no_time() -> None:
    watched = STAGE.model_copy(update={"watch": STAGE.watch.model_copy(update={"held_out": (HpsConfig(weights="b"),)})})
    one, two = (reward_work(stage, VAE, GROUPS) for stage in (STAGE, watched))
    assert two.frozen - one.frozen == 2 * vision_parameters(TOWERS["vit-h-14"])
    dropped = STAGE.model_copy(update={"text_drop": 0.5})
    assert reward_work(dropped, VAE, GROUPS).flops_per_pack == pytest.approx(one.flops_per_pack / 2)
    assert reward_work(STAGE, DctCodecConfig(), GROUPS).activations < 0.1 * one.activations


def test_a_reward_that_cannot_fit_is_refused_with_what_does() -> None:
    with pytest.raises(ConfigError, match=r"does not fit a100-40gb.*are reward") as refused:
        check_fits(setup("a100-40gb"))
    assert "take GPUs of type" in str(refused.value.next_step)
    with pytest.raises(ConfigError, match="does not fit h100-80gb") as refused:
        check_fits(setup(ranks=1))
    assert "take 2 GPUs" in str(refused.value.next_step)
    assert check_fits(replace(setup(ranks=2))) is not None


WAN_VAE = WanVaeConfig(weights="wan", dtype="bfloat16")
WAN_STAGE = STAGE.model_copy(
    update={
        "order": OrderConfig(
            frames=81, min_frames=13, time_stride=4, columns=(), tokens_per_pack=32_760, packs=8, image_every=0
        )
    }
)


def wan_setup(latents: int, codec: CodecConfig | None = WAN_VAE) -> Setup:
    """A reward on whole clips of 480 x 832."""
    groups = (SampleGroup("film", "video", latents, 60, 104, 10),)
    model = WanConfig(mixer="attention", mlp_width=8960)
    return Setup("reward", model, WAN_STAGE, groups, 8, gpu_of("h200"), codec=codec)


def test_wans_vae_is_counted_as_it_is() -> None:
    """Weights, operations and live bytes of a decode with its gradient, of the published network on the meta device."""
    with torch.device("meta"):
        vae = AutoencoderKLWan().bfloat16().requires_grad_(False)
    assert sum(p.numel() for p in vae.parameters()) == WAN_VAE_PARAMETERS
    codec, latents = WanVae(vae), torch.empty((1, 16, 2, 8, 8), dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        codec.decode_tensor(latents)
    assert wan_decode_flops(2, 8, 8) == counter.get_total_flops()
    group = SampleGroup("film", "video", 2, 8, 8, 10)
    for stage, context in ((WAN_STAGE, 0), (STAGE, 1)):
        order = stage.order.model_copy(
            update={"frames": 5, "min_frames": 5, "time_stride": 4, "tokens_per_pack": 1, "high_units": 0}
        )
        bare = stage.model_copy(update={"order": order, "reward": RewardTermConfig()})
        told = (
            reward_work(bare, WAN_VAE, (group,)).activations
            - reward_work(bare, DctCodecConfig(time_stride=4), (group,)).activations
        )
        with LiveMemory() as memory:
            codec.decode_tensor(latents.requires_grad_(), context).sum().backward()
        assert told == pytest.approx(memory.peak_bytes, rel=0.03)


def test_a_reward_on_whole_clips_keeps_every_frames_decode() -> None:
    found, plain, cheap = (estimate(wan_setup(4, codec)) for codec in (WAN_VAE, None, DctCodecConfig(time_stride=4)))
    assert found is not None
    assert plain is not None
    assert cheap is not None
    towers = 2 * sum(vision_parameters(TOWERS[name]) for name in ("vit-h-14", "vit-l-14-openai"))
    assert found.memory.frozen == 2 * WAN_VAE_PARAMETERS + towers
    assert cheap.memory.frozen == towers
    assert 55e9 < found.memory.reward < 60e9  # 13 frames; counted on the meta device
    assert found.reward_flops > cheap.reward_flops > 0
    assert any("with a VAE of the published size" in told for told in found.assumptions)
    assert any("noise window" in told for told in found.assumptions)
    assert found.fits
    with pytest.raises(ConfigError, match=r"does not fit h200.*are reward"):
        check_fits(wan_setup(21))
