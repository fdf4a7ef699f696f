"""The Wan family: plain flow matching over whole clips at their full size (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from m4v.codec.constants import LatentConstants
from m4v.config import AnySampler
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError
from m4v.flow.latents import denormalise
from m4v.flow.loss import VelocityModel
from m4v.flow.packing import PackedColumn
from m4v.model.layout import forget_layouts
from m4v.text.interface import TextFeatures
from m4v.wan.checkpoint import load_wan, save_wan
from m4v.wan.columns import WanColumns
from m4v.wan.config import WanCheckpointConfig
from m4v.wan.convert import attention_to_mm_dim
from m4v.wan.flow import WanDraws, pack
from m4v.wan.initialise import build_wan
from m4v.wan.published import open_published
from m4v.wan.sampler import denoise, initial_noise
from m4v.wan_flow_config import WanSamplerConfig
from training.config import StartConfig
from training.families.interface import Keys, State
from training.objective import TIMESTEP_NAMES
from training.sizes import check_sizes
from training.template import WHOLE, Column


class WanFamily:
    """`Family` of `WanCheckpointConfig`."""

    frames_per_second = 16.0

    def __init__(self, config: WanCheckpointConfig) -> None:
        self.config = config

    @property
    def train_steps(self) -> int:
        return self.config.flow.train_steps

    @property
    def names(self) -> tuple[str, ...]:
        return TIMESTEP_NAMES

    def check_order(self, columns: Sequence[int], where: str) -> None:
        if columns:
            raise ConfigError(
                "a Wan model trains on whole clips, it has no pyramid stages", value=list(columns), where=where,
                next_step="set order.columns to []",
            )  # fmt: skip

    def initial(self, seed: int) -> State:
        state: State = build_wan(self.config.model, seed).state_dict()
        return state

    def imported(self, artifact: Artifact, start: StartConfig, seed: int) -> State:
        """Tensors are read one at a time."""
        published = open_published(artifact.folder())
        check_sizes(published.config, self.config.model, start.weights)
        return published.state() if start.convert == "none" else self.converted(published.stored(), seed)

    def converted(self, attention: State, seed: int) -> State:
        return attention_to_mm_dim(attention, self.config.model, seed)

    def load(self, path_of: Callable[[str], Path], ema: bool) -> nn.Module:
        return WanColumns.of(load_wan(path_of, ema=ema)[0])

    def save(self, directory: Path, state: State, ema: State | None = None) -> None:
        save_wan(directory, self.config, state, ema)

    def pack(
        self, latents: Tensor, column: Column, keys: Keys, seed: int, window: tuple[float, float] | None
    ) -> PackedColumn:
        if column != (WHOLE, latents.shape[2]) or window is not None:
            raise ValueError(f"column {column} of clips with {latents.shape[2]} latents is not the whole clip")
        _, channels, frames, height, width = latents.shape
        draws = WanDraws.from_keys(self.config.flow, seed, keys, (channels, frames, height, width))
        made = pack(self.config.flow, latents, draws)
        return PackedColumn(WHOLE, [made.noisy], made.timestep, made.target, made.sigma, draws.noise)

    def sample(
        self,
        model: VelocityModel,
        sampler: AnySampler,
        positive: TextFeatures,
        negative: TextFeatures,
        size: tuple[int, int, int],
        seed: int,
        constants: LatentConstants,
    ) -> list[Tensor]:
        if not isinstance(sampler, WanSamplerConfig):
            raise ConfigError(
                "a Wan model is sampled by Wan's sampler", where="sampler.kind", next_step="set sampler.kind to wan"
            )
        texts = {id(t.embedding): t for t in (positive, negative)}

        def velocity(x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
            text = texts[id(rows)]
            return model([[x]], times, text.embedding, text.mask, text.pooled, [WHOLE])[0].float()

        noise = initial_noise([seed], (self.config.model.latent_channels, *size)).to(positive.embedding.device)
        other = negative.embedding if sampler.guidance > 1 else None
        made = denoise(velocity, sampler, positive.embedding, other, noise.to(torch.float32))
        forget_layouts()
        return list(denormalise(made.cpu(), constants)[0].split(1, dim=1))
