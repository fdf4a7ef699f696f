"""What `bench_reward.py` measures with: sizes, weights in the product's formats, data, and an objective with marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from clip_weights import save_clip
from torch import Tensor

from m4v.codec import open_codec
from m4v.codec.config import CausalVaeConfig
from m4v.codec.interface import LatentCodec
from m4v.config import ModelConfig
from m4v.flow.schedule import PyramidSchedule
from m4v.scores.clip_config import TOWERS, ClipConfig, ClipTowers, HpsConfig
from m4v.shapes_only import shapes_only
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import VaeConfig
from m4v.vae.weights import save_vae
from training.config import (
    EngineConfig,
    OptimizerConfig,
    OrderConfig,
    RewardConfig,
    RewardTermConfig,
    WeightedScorer,
)
from training.loader import Text
from training.reward.objective import RewardObjective, ScoredColumn
from training.reward.rewards import Rewards, Scored, open_rewards
from training.samples import SampleRow

Mark = Callable[[str], None]
Folders = Mapping[str, Path]


class Sizes(NamedTuple):
    """Networks and latents (t, h, w) of a stage."""

    model: ModelConfig
    vae: VaeConfig
    hps: ClipTowers
    clip: ClipTowers
    latents: tuple[int, int, int]
    tokens_per_pack: int

    def config(self, ranks: int, packs: int, zero: int, ema: float) -> RewardConfig:
        """The reward stage of recipe `m4v-768p` with so many packs a rank; no caption is dropped: every pack scores."""
        frames = 8 * (self.latents[0] - 1) + 1
        order = OrderConfig(
            frames=frames, min_frames=frames, tokens_per_pack=self.tokens_per_pack, packs=ranks * packs, image_every=0,
            high_units=8,
        )  # fmt: skip
        engine = EngineConfig(
            zero_stage=zero, dtype="bfloat16", checkpointing="block", deterministic=False, bucket_elements=150_000_000
        )
        scorers = (
            WeightedScorer(scorer=HpsConfig(weights="hpsv2", towers=self.hps)),
            WeightedScorer(scorer=ClipConfig(weights="clip", towers=self.clip, preprocessing="pad")),
        )
        return RewardConfig(
            name="reward", steps=10_000, order=order, engine=engine, optimizer=OptimizerConfig(lr=1e-5), text_drop=0.0,
            ema_decay=ema, reward=RewardTermConfig(weight=0.1, last_latents=8, scorers=scorers),
        )  # fmt: skip


def sizes_of(tiny: bool) -> Sizes:
    if not tiny:
        return Sizes(ModelConfig(), VaeConfig(), TOWERS["vit-h-14"], TOWERS["vit-l-14-openai"], (16, 96, 160), 20_000)
    model = ModelConfig(
        width=64, heads=2, double_blocks=1, single_blocks=2, text_dim=32, pooled_dim=32, text_slots=8, mlp_ratio=2
    )
    narrow = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
    vae = VaeConfig.model_validate({f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in narrow.items()})
    towers = ClipTowers(
        embed_dim=32, patch=28, vision_width=32, vision_layers=2, vision_heads=2, text_width=32, text_layers=2,
        text_heads=2,
    )  # fmt: skip
    return Sizes(model, vae, towers, towers, (3, 16, 24), 120)


def make_folders(root: Path, sizes: Sizes, device: torch.device) -> Folders:
    """Folders of imported weights, drawn on the device: VAE, HPSv2 and CLIP. Those that are there are taken."""
    folders = {name: root / name for name in ("vae", "hpsv2", "clip")}
    generator = torch.Generator(device).manual_seed(1)
    if not (root / "done").exists():
        with shapes_only():
            vae = CausalVideoVae(sizes.vae)
        vae.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in vae.named_parameters():
                # Variance is kept from layer to layer, so that frames have contrast and pixels a gradient.
                fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 0
                parameter.normal_(0, fan**-0.5 if fan else 0.0, generator=generator)
                if parameter.dim() == 1 and name.endswith("weight"):
                    parameter.fill_(1)
        save_vae(folders["vae"], vae)
        del vae
        save_clip(folders["hpsv2"], "hpsv2.1", sizes.hps, generator)
        save_clip(folders["clip"], "clip-vit-l-14", sizes.clip, generator)
        (root / "done").touch()
    return folders


class Source:
    """Samples that are drawn instead of read: `training.loader.SampleStore`'s interface."""

    def __init__(self, sizes: Sizes, count: int = 64) -> None:
        self._sizes = sizes
        self.rows = [SampleRow(f"{i:064x}", "film", "video", *sizes.latents) for i in range(count)]

    def latent(self, sample_id: str, draw: int, seed: int, frames: int) -> Tensor:
        del draw, seed
        _, h, w = self._sizes.latents
        return torch.randn(16, frames, h, w, generator=torch.Generator().manual_seed(int(sample_id, 16)))

    def text(self, sample_id: str, caption: int) -> Text:
        model, drawn = self._sizes.model, torch.Generator().manual_seed(1000 + int(sample_id, 16) + caption)
        mask = torch.arange(model.text_slots) < 1 + model.text_slots // 2
        embedding = torch.randn(model.text_slots, model.text_dim, generator=drawn)
        return Text(embedding, mask, torch.randn(model.pooled_dim, generator=drawn))

    @property
    def null_text(self) -> Text:
        return self.text(f"{0:064x}", 7)

    def captions(self, sample_id: str) -> int:
        return 1

    def caption(self, sample_id: str, caption: int) -> str:
        return f"scene {int(sample_id, 16)} of a long and colourful film"


class MarkedObjective(RewardObjective):
    """The product's objective, with a mark where a part of it ends."""

    mark: Mark
    codec: LatentCodec
    rewards: Rewards

    def _decode(self, *args: object) -> Tensor:
        self.mark("flow forward")
        video = super()._decode(*args)  # type: ignore[arg-type]
        self.mark("decode")
        return video

    def _scored(self, *args: object) -> ScoredColumn | None:
        found = super()._scored(*args)  # type: ignore[arg-type]
        if found is not None:
            self.mark("numbers of the watch")
        return found

    def _watched(self, video: Tensor, scored: Scored) -> dict[str, tuple[float, int]]:  # type: ignore[override]
        self.mark("gradient at the velocity")
        return super()._watched(video, scored)


class MarkedRewards:
    """Scorers with a mark after them."""

    def __init__(self, rewards: Rewards, mark: Mark) -> None:
        self._rewards, self._mark, self.names = rewards, mark, rewards.names

    def __call__(self, frames: Tensor, captions: Sequence[str]) -> Scored:
        found = self._rewards(frames, captions)
        self._mark("scorers")
        return found


def measured_objective(
    config: RewardConfig, schedule: PyramidSchedule, folders: Folders, device: str, mark: Mark
) -> MarkedObjective:
    """Codec and scorers opened as the stage `reward` opens them, self-tests included."""
    vae = CausalVaeConfig(weights="vae", dtype="bfloat16" if device != "cpu" else "float32", decode_window=2)
    codec = open_codec(vae, folders, device)
    mark("VAE")
    rewards = open_rewards(config.reward.scorers, config.watch.held_out, folders, device)
    objective = MarkedObjective(config.reward, schedule, codec, MarkedRewards(rewards, mark))  # type: ignore[arg-type]
    objective.mark, objective.codec, objective.rewards = mark, codec, rewards
    return objective
