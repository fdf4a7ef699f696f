"""What training asks of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from m4v.codec.constants import LatentConstants
from m4v.config import AnySampler
from m4v.core.artifacts import Artifact
from m4v.family import AnyCheckpoint
from m4v.flow.loss import VelocityModel
from m4v.flow.packing import PackedColumn
from m4v.text.interface import TextFeatures
from training.config import StartConfig
from training.template import Column

Keys = Sequence[tuple[str, int]]  # sample id, draw index
State = Mapping[str, Tensor]


class Packing(Protocol):
    """How clean latents become what the model is given and should answer."""

    def pack(
        self, latents: Tensor, column: Column, keys: Keys, seed: int, window: tuple[float, float] | None
    ) -> PackedColumn:
        """The column of normalised `latents` (b, c, t, h, w), whose row i is keyed by `keys[i]`; `window` narrows the
        noise ratio of high-stage columns."""
        ...


class Family(Packing, Protocol):
    """Bound to the config of one checkpoint."""

    frames_per_second: float

    @property
    def config(self) -> AnyCheckpoint: ...

    @property
    def train_steps(self) -> int:
        """Timesteps run up to it."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Extra columns of the metrics of flow matching."""
        ...

    def check_order(self, columns: Sequence[int], where: str) -> None:
        """Raise ConfigError when an order's `columns` are not of this family."""
        ...

    def initial(self, seed: int) -> State:
        """Weights of the untrained model."""
        ...

    def imported(self, artifact: Artifact, start: StartConfig, seed: int) -> State:
        """Weights from an imported model. Raises ConfigError when sizes in the config are not those of the weights,
        DataIntegrityError when the artifact holds no such transformer."""
        ...

    def converted(self, attention: State, seed: int) -> State:
        """Weights from those of the same model with attention."""
        ...

    def load(self, path_of: Callable[[str], Path], ema: bool) -> nn.Module:
        """The model of a checkpoint folder, float32 on the CPU: a `VelocityModel`."""
        ...

    def save(self, directory: Path, state: State, ema: State | None = None) -> None:
        """Write a checkpoint folder. Raises DataIntegrityError if the weights do not fit."""
        ...

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
        """Codec latents (16, 1, h, w), float32 on the CPU, of one video of latent `size` (t, h, w). Raises ConfigError
        for a sampler of another family."""
        ...
