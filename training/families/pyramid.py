"""The pyramid family: frame after frame through three resolutions (PyramidFlow with M4V's mixers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from m4v.checkpoint import CONFIG, MODEL, load_checkpoint, read_config, save_checkpoint
from m4v.codec.constants import LatentConstants
from m4v.config import AnySampler, CheckpointConfig, SamplerConfig
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError
from m4v.flow.loss import VelocityModel
from m4v.flow.packing import ColumnDraws, PackedColumn, pack_column
from m4v.flow.sampler import stream
from m4v.flow.schedule import PyramidSchedule
from m4v.model import build_model
from m4v.model.convert import attention_to_mamba
from m4v.model.layout import forget_layouts
from m4v.text.interface import TextFeatures
from training.config import StartConfig
from training.families.interface import Keys, State
from training.imported import read_tensors
from training.objective import FLOW_NAMES
from training.sizes import check_sizes
from training.template import HIGH, Column


class PyramidFamily:
    """`Family` of `CheckpointConfig`."""

    frames_per_second = 24.0

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config

    @cached_property
    def schedule(self) -> PyramidSchedule:
        return PyramidSchedule(self.config.schedule)

    @property
    def train_steps(self) -> int:
        return self.config.schedule.train_steps

    @property
    def names(self) -> tuple[str, ...]:
        return FLOW_NAMES

    def check_order(self, columns: Sequence[int], where: str) -> None:
        if not columns:
            raise ConfigError(
                "the model has a pyramid and the order has no columns", where=where,
                next_step="name the pyramid stage of each column, such as order.columns [0, 1, 1, 2]",
            )  # fmt: skip

    def initial(self, seed: int) -> State:
        return build_model(self.config.model, seed).state_dict()

    def imported(self, artifact: Artifact, start: StartConfig, seed: int) -> State:
        """Tensors stay memory maps where they are taken as they are, and conversion copies one at a time, so that 2.2
        billion weights are in memory once."""
        check_sizes(read_config(artifact.path(CONFIG)).model, self.config.model, start.weights)
        published = read_tensors(artifact.path(MODEL))
        return published if start.convert == "none" else self.converted(published, seed)

    def converted(self, attention: State, seed: int) -> State:
        return attention_to_mamba(attention, self.config.model, seed)

    def load(self, path_of: Callable[[str], Path], ema: bool) -> nn.Module:
        return load_checkpoint(path_of, ema=ema)[0]

    def save(self, directory: Path, state: State, ema: State | None = None) -> None:
        save_checkpoint(directory, self.config, state, ema)

    def pack(
        self, latents: Tensor, column: Column, keys: Keys, seed: int, window: tuple[float, float] | None
    ) -> PackedColumn:
        _, channels, frames, height, width = latents.shape
        draws = ColumnDraws.from_keys(seed, keys, (channels, frames, height, width), column.stage, column.unit)
        if window is not None and column.stage == HIGH:
            low, high = window  # of the noise ratio, which is 1 - step
            draws = replace(draws, step=1 - high + draws.step * (high - low))
        return pack_column(self.schedule, latents, column.stage, column.unit, draws)

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
        if not isinstance(sampler, SamplerConfig):
            raise ConfigError("the model has a pyramid and the sampler is of another family", value=sampler.kind)
        made = stream(model, self.schedule, sampler, positive, negative, size, [seed], constants=constants)
        frames = [frame[0].float().cpu() for frame in made]
        forget_layouts()
        return frames
